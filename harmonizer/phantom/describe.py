"""Descriptions, tables, sidecars and README files of a phantom study."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..files import write_text
from .anatomy import LABELS
from .scanner import Scanner

__all__ = [
    "BIDS_VERSION", "write_tsv", "description", "truth_description", "sidecar", "README",
    "TRUTH_README", "PARTICIPANTS_JSON", "SESSIONS_JSON", "TRUTH_JSON", "LABEL_ROWS",
]

BIDS_VERSION = "1.10.0"

README = """\
# Digital phantom

Simulated MR images of simulated subjects and scanners, written by harmonizer.phantom. No real
subject was scanned. The anatomy is deformed from the MNI152NLin2009aSym template (ICBM, Fonov 2009,
as bundled with nilearn). Age widens the ventricles and thins the cortex. Contrast follows from
tissue relaxation times and the sequences in the sidecars. Manufacturers and models of the scanners
are invented, so that no image is mistaken for a vendor's.

The truth (labels, masks, noise-free images, bias fields) is in the folder with the same name and
the ending -truth. `dataset_description.json` holds the seed and the design.
"""

TRUTH_README = """\
# Truth of a digital phantom

This folder belongs to the BIDS dataset with the same name without -truth. It lies outside of the
dataset, so that an app that reads the dataset cannot find it.

All images of a scan lie on that scan's own grid (same shape, same affine), with the head in the
same pose. `truth.tsv` has one row for each scan and each target scanner:

* `scan`: the image in the dataset, relative to the dataset
* `participant`, `modality`, `source_site` (where it was scanned), `target_site`
* `image`, relative to this folder: `<scan>_scanner-<target>_<modality>.nii.gz`, the scan as if made
  on the target scanner: that scanner's contrast, resolution and gain, without noise and without
  bias field. With target_site = source_site it is the scan itself without noise and
  bias. A perfect harmonization to the target gives this image.
* `mask`: inside the brain's surface, ventricles and fissures included
* `labels`: 0 air, 1 CSF, 2 GM (with subcortical), 3 WM, 4 bone, 5 soft tissue (`dseg.tsv`); CSF
  reaches beyond the mask, up to the bone
* `bias`: the bias field of the scan, around 1. bias x (image at target_site = source_site) is
  the scan without its noise.

Intensities are comparable within a target: white matter is about the target's gain.
"""

PARTICIPANTS_JSON = {
    "age": {"Description": "Simulated age", "Units": "year"},
    "sex": {
        "Description": "Simulated sex, which determines the mean head size",
        "Levels": {"F": "female", "M": "male"},
    },
    "site": {"Description": "Scanner of the participant; n/a for traveling subjects, see sessions"},
}
SESSIONS_JSON = {"site": {"Description": "Scanner of the session"}}
TRUTH_JSON = {
    "scan": {"Description": "Image in the dataset, relative to the dataset"},
    "participant": {"Description": "Participant label"},
    "modality": {"Description": "BIDS suffix of the image"},
    "source_site": {"Description": "Scanner that made the scan"},
    "target_site": {
        "Description": "Scanner whose contrast, resolution and gain the noise-free image has",
    },
    "image": {"Description": "The scan as if on the target: noise-free, no bias field"},
    "mask": {"Description": "Brain mask on the scan's grid"},
    "labels": {"Description": "Labels on the scan's grid, see dseg.tsv"},
    "bias": {"Description": "Bias field of the scan, around 1"},
}
LABEL_ROWS = [{"index": "0", "name": "Air"}] + [
    {"index": str(index), "name": name} for index, name in LABELS.items()
]

_SEQUENCES = {
    "spgr": ("GR", "SP", "Spoiled gradient echo"),
    "mprage": ("GR\\IR", "MP\\SP", "Magnetization-prepared rapid gradient echo"),
    "spin_echo": ("SE", "NONE", "Spin echo"),
    "flair": ("SE\\IR", "MP", "Fluid-attenuated inversion recovery"),
}


def write_tsv(path: Path, columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write a BIDS table with a header; `n/a` stands for missing values."""
    names = list(columns)
    cells = [[_cell(row.get(name)) for name in names] for row in rows]
    return write_text(path, "\n".join("\t".join(line) for line in [names, *cells]) + "\n")


def _cell(value: Any) -> str:
    if value is None or value == "":
        return "n/a"
    return f"{value:g}" if isinstance(value, float) else str(value)


def description(
    seed: int, design: str, scanners: Iterable[Scanner], version: str
) -> dict[str, Any]:
    """Return `dataset_description.json` of the raw dataset; it contains the seed and the design."""
    return {
        "Name": f"Digital phantom, {design} design, seed {seed}",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "raw",
        "License": "CC0",
        "Authors": ["harmonizer.phantom", "V. S. Fonov (template)", "nilearn (template)"],
        "GeneratedBy": [{
            "Name": "harmonizer.phantom",
            "Version": version,
            "Description": f"simulated; design {design}, seed {seed}, "
                           f"scanners {', '.join(s.name for s in scanners)}",
        }],
        "ReferencesAndLinks": ["https://doi.org/10.1016/S1053-8119(09)70884-5"],
    }


def truth_description(seed: int, raw: str, version: str) -> dict[str, Any]:
    """Return `dataset_description.json` of the truth."""
    return {
        "Name": f"Truth of the digital phantom in {raw}, seed {seed}",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "License": "CC0",
        "GeneratedBy": [{"Name": "harmonizer.phantom", "Version": version}],
    }


def sidecar(scanner: Scanner, modality: str, stripped: bool) -> dict[str, Any]:
    """Return the JSON sidecar of an image; times are in seconds, as in BIDS."""
    sequence = scanner.sequence(modality)
    kind, variant, name = _SEQUENCES[sequence.kind]
    content: dict[str, Any] = {
        "Modality": "MR",
        "MagneticFieldStrength": scanner.tesla,
        "Manufacturer": scanner.manufacturer,
        "ManufacturersModelName": scanner.model,
        "InstitutionName": scanner.name.capitalize(),
        "InstitutionAddress": "none: simulated",
        "InstitutionalDepartmentName": "harmonizer.phantom",
        "StationName": scanner.name.upper(),
        "DeviceSerialNumber": f"{scanner.bias_seed:05d}",
        "SoftwareVersions": "harmonizer.phantom",
        "ReceiveCoilName": "simulated",
        "ReceiveCoilActiveElements": "one complex channel",
        "MatrixCoilMode": "none",
        "CoilCombinationMethod": "none: one complex channel",
        "NonlinearGradientCorrection": False,
        "MRAcquisitionType": "3D",
        "ScanningSequence": kind,
        "SequenceVariant": variant,
        "SequenceName": sequence.kind,
        "PulseSequenceType": name,
        "PulseSequenceDetails": "closed-form signal equation, see harmonizer.phantom.physics",
        "RepetitionTime": sequence.tr / 1000,
        "EchoTime": sequence.te / 1000,
        "FlipAngle": sequence.flip,
    }
    if sequence.ti:
        content["InversionTime"] = sequence.ti / 1000
    if stripped:
        content["SkullStripped"] = True
    return content
