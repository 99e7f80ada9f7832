"""`Settings`: all options of one run, immutable, that can be saved and loaded again.

    defaults  <  configuration file (TOML)  <  command line

`Settings` checks what can be checked without the disk; `pipelines.cli` checks that folders, labels
and devices exist. Relative paths start at the current folder, in files as on the command line, and
are stored as absolute paths.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from harmonizer.errors import UsageError, did_you_mean

from .checks import CHECKS
from .fields import (
    ANATOMY_CHANGE_MAPS,
    CARD_SUFFIX,
    DETAIL,
    EXPORT_NAMES,
    EXPORTS,
    LEVELS,
    MODALITIES,
    PRECISION,
    SCANNER_FREE,
    SITE_SOURCES,
    SKULL_STRIP,
    STAGES,
    TEXTURE,
    TRAVELING,
    as_boolean,
    as_columns,
    as_integer,
    as_labels,
    as_number,
    as_participants,
    as_path,
    as_paths,
    as_targets,
    as_text,
    as_texts,
    available_cpus,
    option,
    parse_option,
    stages_of,
    target_kind_of,
)

__all__ = ["ONE_TIME_OPTIONS", "Settings", "load_toml", "named_value"]

ONE_TIME_OPTIONS = ("dry_run", "reports_only", "boilerplate_only", "clean_workdir")  # never saved


@dataclass(frozen=True)
class Settings:
    """All options of one run, parsed and checked.

    Values are parsed first, so paths may be text and tuples may be lists: ``Settings("/bids",
    "/out", ["group"])``.

    Raises
    ------
    UsageError
        If a value is wrong; the message states what to give instead.
    """

    bids_dir: Path = option(as_path)
    """Folder of the raw BIDS dataset; read, never written."""
    output_dir: Path = option(as_path)
    """Folder of the derivative dataset; jobs of several participants may share it."""
    levels: tuple[str, ...] = option(as_texts, choices=LEVELS)
    """Analysis levels to run: 'participant', 'group' or both."""

    participant_label: tuple[str, ...] = option(as_labels("sub-"), ())
    """Participants to process, without 'sub-'; empty means all."""
    session_label: tuple[str, ...] = option(as_labels("ses-"), ())
    """Sessions to process, without 'ses-'; empty means all."""
    modalities: tuple[str, ...] = option(as_texts, ("T1w",), choices=MODALITIES)
    """Image types to process, each harmonized within itself."""
    bids_filter_file: Path | None = option(as_path, None)
    """JSON file that selects images by their entities, for each modality."""
    bids_database_dir: Path | None = option(as_path, None)
    """Folder of a pybids index; built if absent, otherwise opened unchanged."""
    skip_bids_validation: bool = option(as_boolean, False)
    """Do not run the BIDS validator."""
    include_existing: bool = option(as_boolean, False)
    """Also use preprocessed scans of OUTPUT_DIR whose image is not in BIDS_DIR."""
    derivatives: dict[str, Path] = option(as_paths, default_factory=dict, hash=False)
    """Named folders of precomputed masks and preprocessed images, searched in this order."""

    site_from: str = option(as_text, "auto", choices=SITE_SOURCES)
    """Site source: auto, participants, sessions, ses or sidecar."""
    site_column: str = option(as_text, "site")
    """Column of participants.tsv and sessions.tsv that names the site."""
    site: str | None = option(as_text, None)
    """One site for all scans; overrides the dataset."""

    stages: tuple[str, ...] = option(as_texts, (), choices=STAGES)
    """Stages to run; empty means all stages of the levels (see `planned_stages`)."""
    backend: str = option(as_text, "tissue_matching")
    """Name of the harmonization method."""
    backend_option: tuple[str, ...] = option(as_texts, ())
    """Options of the method as key=value, such as method=landmarks; its page lists them."""
    target: tuple[str, ...] = option(as_targets, ())
    """Site label, reference images, site card or 'scanner-free'; empty means the default."""
    model: Path | None = option(as_path, None)
    """Folder of a fitted model to apply instead of fitting one."""
    fit_participants: tuple[str, ...] = option(as_participants, ())
    """Participants to fit on: labels without 'sub-', or column=value; empty means all."""
    fit_low_confidence_masks: bool = option(as_boolean, False)
    """Also fit on scans whose brain mask has low confidence."""
    exclude: Path | None = option(as_path, None)
    """Table of ratings; scans rated 'exclude' enter neither the model nor the statistics."""
    covariates: tuple[str, ...] = option(as_columns, ())
    """Age, sex and columns of participants.tsv whose effects are evaluated; empty: age, sex."""
    reference_site: str | None = option(as_text, None)
    """Site that the others are tested against; None means the target, else the largest."""
    traveling: str = option(as_text, "auto", choices=TRAVELING)
    """auto: one label at several sites is one traveling subject; no: several subjects."""
    compare: bool = option(as_boolean, False)
    """Evaluate all harmonized variants in OUTPUT_DIR, not only this desc."""
    anatomy_change_maps: str = option(as_text, "none", choices=ANATOMY_CHANGE_MAPS)
    """Images whose anatomy change map is written: none, flagged or all."""
    skull_strip: str = option(as_text, "auto", choices=SKULL_STRIP)
    """auto: detect brain-only input; force: always extract; skip: input is brain only; network: as
    auto, with the network instead of the template."""
    desc: str = option(as_text, "harmonized")
    """Value of the desc entity in the names of the harmonized images."""
    texture: str | None = option(as_text, None, choices=TEXTURE)
    """Noise and blur: match or keep; None: the method's default."""
    detail: str = option(as_text, "direct", choices=DETAIL)
    """direct: the method's image; guided: its contrast transfer applied to the scan."""
    device: str = option(as_text, "auto")
    """Where networks run: auto, cpu, cuda or cuda:N."""
    preset: str | None = option(as_text, None)
    """Size of a learned method: tiny (tests), small (CPU), paper (GPU); None: its default."""
    max_minutes: float | None = option(as_number, None)
    """Time limit of a training; the same command resumes it."""
    devices: int = option(as_integer, 1, low=1, high=1024)
    """Devices on each node that a training uses, one process each."""
    num_nodes: int = option(as_integer, 1, low=1, high=100_000)
    """Nodes that a training uses; under srun, with one task for each device."""
    precision: str = option(as_text, "auto", choices=PRECISION)
    """Precision of training: bf16, fp32, or auto (bf16 if the hardware supports it)."""
    random_seed: int = option(as_integer, 1, low=1, high=2**31 - 1)
    """Seed of ANTs, numpy and torch, 1 to 2147483647."""
    sloppy: bool = option(as_boolean, False)
    """Coarse and fast, for tests only."""

    work_dir: Path = option(as_path, Path("work"))
    """Folder for intermediate results; with it a stopped run resumes."""
    nprocs: int = option(as_integer, default_factory=available_cpus, low=1, high=100_000)
    """CPU threads over all processes."""
    omp_nthreads: int = option(as_integer, 1, low=1, high=100_000)
    """CPU threads of one process; processing scans in parallel is faster than more threads."""
    mem_gb: float | None = option(as_number, None)
    """Memory limit in GB (1e9 bytes); None means 90 % of the machine's."""
    use_plugin: Path | None = option(as_path, None)
    """YAML file with Nipype's keys plugin and plugin_args."""
    stop_on_first_crash: bool = option(as_boolean, False)
    """Stop at the first failed step instead of finishing the other scans."""
    dry_run: bool = option(as_boolean, False)
    """Print the plan (scans, target, reused results, estimated cost) and run nothing."""
    export: str | None = option(as_text, None, choices=EXPORTS)
    """raw: also write the harmonized images as a raw-like BIDS dataset; None: do not."""
    export_dir: Path | None = option(as_path, None)
    """Folder of the exported dataset; None: OUTPUT_DIR/derivatives/raw-DESC."""
    export_names: str = option(as_text, "rec", choices=EXPORT_NAMES)
    """Names of the exported images: rec (with rec-DESC) or original (as in BIDS_DIR)."""
    reports_only: bool = option(as_boolean, False)
    """Write the reports again from OUTPUT_DIR, run nothing."""
    boilerplate_only: bool = option(as_boolean, False)
    """Write the methods text of OUTPUT_DIR, run nothing."""
    clean_workdir: bool = option(as_boolean, False)
    """Remove results of earlier runs from the work folder first."""
    write_graph: bool = option(as_boolean, False)
    """Write the graph of the workflow into OUTPUT_DIR/logs."""
    notrack: bool = option(as_boolean, False)
    """Accepted for compatibility with fMRIPrep; no data are ever sent."""
    verbose: int = option(as_integer, 0, low=0, high=10)
    """0: progress and warnings; 1: details; 2: details of all libraries."""
    config_file: Path | None = option(as_path, None)
    """The configuration file that these settings were read from."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = parse_option(item, getattr(self, item.name))
            object.__setattr__(self, item.name, value)
        for check in CHECKS:
            check(self)

    @property
    def planned_stages(self) -> tuple[str, ...]:
        """Return the stages of this run in order; a given model replaces the fit."""
        requested = self.stages or stages_of(self.levels)
        requested = tuple(stage for stage in requested if stage != "export" or self.export)
        requested += ("export",) if self.export else ()
        skipped = {"fit"} if self.model else set()
        return tuple(stage for stage in STAGES if stage in requested and stage not in skipped)

    @property
    def export_folder(self) -> Path:
        """Return the folder of the exported dataset: `export_dir`, else one for each desc."""
        return self.export_dir or self.output_dir / "derivatives" / f"raw-{self.desc}"

    @property
    def backend_options(self) -> dict[str, Any]:
        """Return the options of the method; values are parsed as JSON if possible, else text."""
        flags = {"preset": self.preset, "texture": self.texture}
        given = {name: value for name, value in flags.items() if value is not None}
        return {**given, **dict(map(named_value, self.backend_option))}

    @property
    def target_kind(self) -> str:
        """Return 'default', 'site', 'images', 'card' or 'scanner-free'; refuse mixtures."""
        kinds = {target_kind_of(entry) for entry in self.target} or {"default"}
        if len(kinds) > 1 or (len(self.target) > 1 and kinds != {"images"}):
            raise UsageError(
                f"--target {' '.join(self.target)}: expected one site label, one site card "
                f"({CARD_SUFFIX}), '{SCANNER_FREE}', or one or more reference images "
                "(.nii, .nii.gz). Give one kind."
            )
        return kinds.pop()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for TOML or JSON, without unset options."""
        return {name: _plain(value) for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], origin: str = "settings") -> Settings:
        """Make settings from plain values; errors name their `origin`."""
        _refuse_unknown(values, origin)
        missing = [name for name in ("bids_dir", "output_dir", "levels") if name not in values]
        if missing:
            raise UsageError(f"{origin}: {', '.join(missing)} not given. Add them.")
        return cls(**values)

    def to_toml(self) -> str:
        """Return TOML text for `--config-file`, without `ONE_TIME_OPTIONS`.

        The settings of a dry run can thus be executed, and a repeated run keeps its work folder.
        """
        import tomli_w

        values = self.to_dict()
        return tomli_w.dumps({k: v for k, v in values.items() if k not in ONE_TIME_OPTIONS})


def load_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the options of a TOML file; hyphens in keys are read as underscores.

    Raises
    ------
    UsageError
        If the file is missing, is not TOML, or has a key that is not an option.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:  # pragma: no cover (Python 3.10)
        import tomli as tomllib
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}). Check the path.") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: is not valid TOML ({error}). Repair it.") from error
    values = {key.replace("-", "_"): value for key, value in content.items()}
    _refuse_unknown(values, str(path))
    return values


def _refuse_unknown(values: Mapping[str, Any], origin: str) -> None:
    known = {item.name for item in fields(Settings)}
    for key in values:
        if key not in known:
            raise UsageError(f"{origin}: unknown option {key!r}. {did_you_mean(key, known)}")


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def named_value(text: str) -> tuple[str, Any]:
    """Split ``name=value``; the value is parsed as JSON if possible, else kept as text.

    Raises
    ------
    UsageError
        If name or equals sign is missing.
    """
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UsageError(f"--backend-option {text!r}: expected name=value, such as band=0.02.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
