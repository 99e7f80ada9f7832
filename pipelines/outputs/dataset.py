"""Dataset-level files of the BIDS derivative dataset.

Every participant job writes these files under a temporary name and renames them. All jobs write the
same content: the files hold no time and nothing of a single participant.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

from harmonizer import __version__
from harmonizer.files import atomic_path, decode_text, read_json, write_json, write_text

__all__ = ["PIPELINE_NAME", "code_url", "dataset_link", "generated_by", "write_dataset_files"]

PIPELINE_NAME = "harmonizer"
DISTRIBUTION = "brain-harmonizer"
BIDS_VERSION = "1.10.0"

IGNORED_PATTERNS = (
    "*.html", "**/figures", "**/figures/**", "**/*_xfm.*", "*_xfm.*", "cohort.*", "metrics*",
    "group_*", "models", "models/**", "**/.tmp-*",
    "**/*_anatomychange.*", "**/*_std.*",
)

README = """\
# Harmonized MRI

Derivatives written by harmonizer. `desc-preproc` images are bias-corrected, `desc-harmonized`
images also have the contrast of one scanner; both lie on the subject's own grid (no `space` entity)
and on the template grid (`space-`). The head outside the brain mask is only scaled. `probseg`
images hold the probabilities of CSF, gray and white matter in each voxel, 0 to 1. Each sidecar
names the sources and the processing of its image. Open `group.html` and `sub-*.html` in a browser;
`metrics.tsv` holds the numbers, `models/` the fitted models, `logs/CITATION.md` the methods text.
"""

DESCRIPTIONS = {
    "preproc": "bias-corrected (N4) whole image; on the template grid after affine registration",
    "brain": "brain mask",
    "head": "mask of the whole head, for methods that change it",
    **{label.format(contrast): text.format(contrast)  # names that `ScanPaths` makes
       for contrast in ("T2w", "FLAIR", "PDw")
       for label, text in (("brain{}", "brain mask found on the {} image"),
                           ("head{}", "mask of the whole head in the {} image"),
                           ("{}", "tissue probabilities on the grid of the {} image"))},
}


def write_dataset_files(
    out: Path, raw: Path | None, derivatives: Mapping[str, Path], descs: Mapping[str, str]
) -> None:
    """Write dataset_description.json, descriptions.tsv, .bidsignore, and the participants table.

    Parameters
    ----------
    out : Path
        Root of the derivative dataset.
    raw : Path or None
        The raw dataset; its license and participants table are copied.
    derivatives : mapping of str to Path
        Named folders of precomputed results.
    descs : mapping of str to str
        Desc label -> description, added to those that are listed already.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "dataset_description.json", _description(out, raw, derivatives))
    write_text(out / ".bidsignore", "\n".join(IGNORED_PATTERNS) + "\n")
    write_text(out / "README.md", README)
    _write_descriptions(out, descs)
    if raw is not None:
        for name in ("participants.tsv", "participants.json"):
            if (raw / name).is_file():
                _copy_text(raw / name, out / name)


def _copy_text(source: Path, destination: Path) -> None:
    """Copy a text file as UTF-8, as BIDS requires; copy bytes of unknown encoding unchanged."""
    content = source.read_bytes()
    with contextlib.suppress(UnicodeDecodeError):
        text, encoding = decode_text(content)
        content = text.encode() if encoding != "utf-8" else content
    with atomic_path(destination) as temporary:
        temporary.write_bytes(content)


def _description(out: Path, raw: Path | None, derivatives: Mapping[str, Path]) -> dict[str, Any]:
    """Describe the dataset; without raw data the fields about them are kept."""
    path = out / "dataset_description.json"
    old = read_json(path) if path.is_file() else {}
    source = _source(raw)
    links = {**old.get("DatasetLinks", {}),
             **{k: dataset_link(out, v) for k, v in derivatives.items()}}
    if raw is not None:
        links["raw"] = dataset_link(out, raw)
    content: dict[str, Any] = {
        "Name": "Harmonized MRI" + (f" of: {source['Name']}" if "Name" in source else ""),
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [generated_by()],
        "HowToAcknowledge": "See logs/CITATION.md.",
    }
    if links:
        content["DatasetLinks"] = dict(sorted(links.items()))
    if raw is not None:
        content["SourceDatasets"] = [{k: source[k] for k in ("DatasetDOI",) if k in source}
                                     | {"URL": links["raw"]}]
    if "License" in source:
        content["License"] = source["License"]
    return content if raw is not None or not old else {**old, **content, "Name": old["Name"]}


def _source(raw: Path | None) -> dict[str, Any]:
    path = None if raw is None else raw / "dataset_description.json"
    if path is None or not path.is_file():
        return {}
    content = read_json(path)
    return content if isinstance(content, dict) else {}


def dataset_link(out: Path, folder: Path) -> str:
    """Return the link to a folder: relative if it is near, so that both folders can be moved."""
    relative = os.path.relpath(folder, out)
    return relative if relative.count("..") <= 2 else folder.resolve().as_uri()


def code_url() -> str | None:
    """Return the URL of the source code, ``project_urls`` of setup.cfg; None if there is none."""
    try:
        entries = metadata(DISTRIBUTION).get_all("Project-URL") or []
    except PackageNotFoundError:  # run from a checkout that was not installed
        return None
    urls = dict(entry.split(", ", 1) for entry in entries)
    return urls.get("Source")


def generated_by() -> dict[str, Any]:
    """Return this pipeline's GeneratedBy entry; the container is read from the environment."""
    entry: dict[str, Any] = {"Name": PIPELINE_NAME, "Version": __version__}
    url = code_url()
    if url:
        entry["CodeURL"] = url
    kind, tag = os.environ.get("HARMONIZER_CONTAINER"), os.environ.get("HARMONIZER_CONTAINER_TAG")
    if kind and tag:
        entry["Container"] = {"Type": kind, "Tag": tag}
    return entry


def _write_descriptions(out: Path, descs: Mapping[str, str]) -> None:
    path = out / "descriptions.tsv"
    rows = dict(DESCRIPTIONS)
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines()[1:]
        cells = (line.removeprefix("desc-").partition("\t") for line in lines)
        rows.update((label, text) for label, tab, text in cells if tab)
    rows.update(descs)
    body = "".join(f"desc-{label}\t{text}\n" for label, text in sorted(rows.items()))
    write_text(path, "desc_id\tdescription\n" + body)
