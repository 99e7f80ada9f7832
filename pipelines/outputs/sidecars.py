"""What is said beside each image: where it comes from, what was done, and on whose word.

Sidecars hold nothing that changes from run to run (no times, no paths of the machine): the same
input and seed give the same bytes. What varies is in ``logs/``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harmonizer import __version__
from harmonizer.template import TEMPLATE

__all__ = ["KEPT_METADATA", "scan_facts", "preproc", "mask", "share", "harmonized"]

KEPT_METADATA = (
    "Manufacturer", "ManufacturersModelName", "MagneticFieldStrength", "DeviceSerialNumber",
    "StationName", "InstitutionName", "SoftwareVersions", "PulseSequenceType",
    "ScanningSequence", "SequenceVariant", "RepetitionTime", "EchoTime", "InversionTime",
    "FlipAngle", "RepetitionTimeExcitation", "ReceiveCoilName", "NonlinearGradientCorrection",
)
"""Fields of the source's sidecar that stay true of every derivative of it."""

TEMPLATE_URL = "https://nist.mni.mcgill.ca/icbm-152-nonlinear-atlases-2009/"
RESOLUTIONS = {1: "1 mm isotropic", 2: "2 mm isotropic (sloppy run)"}


def scan_facts(record: Any) -> dict[str, Any]:
    """What `collect` needs to rebuild a scan's row in the cohort; of a `ScanRecord`."""
    return {
        "ScanId": record.scan_id,
        "Site": record.site,
        "SiteSource": record.site_source,
        "Covariates": {k: v for k, v in sorted(record.covariates.items()) if v is not None},
    }


def kept(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The source's acquisition facts that stay true."""
    return {key: metadata[key] for key in KEPT_METADATA if key in metadata}


def space(template: bool, resolution: int) -> dict[str, Any]:
    """Fields that a template-space image must carry; none for a native one."""
    if not template:
        return {}
    return {"SpatialReference": TEMPLATE_URL, "Resolution": RESOLUTIONS[resolution]}


def preproc(
    sources: list[str], stripped: bool, template: bool, resolution: int, repairs: list[str]
) -> dict[str, Any]:
    """Sidecar of a preprocessed image, without what is the scan's own (`scan_facts`, `kept`)."""
    where = f" on the {TEMPLATE} grid (affine, linear interpolation)" if template else ""
    return {
        "Description": f"Bias-corrected image{where}",
        "Sources": sources,
        "SkullStripped": stripped,
        **space(template, resolution),
        "HeaderRepairs": repairs,
        "PipelineVersion": __version__,
    }


def mask(sources: list[str], template: bool, resolution: int, quality: Mapping[str, Any]
         ) -> dict[str, Any]:
    """Sidecar of a brain mask with its quality check."""
    return {
        "Description": "Brain mask",
        "Type": "Brain",
        "Sources": sources,
        "SkullStripped": False,
        **space(template, resolution),
        "QualityCheck": dict(quality),
    }


def share(sources: list[str], tissue: str, template: bool, resolution: int, weights: str,
          support: float, donor: str = "") -> dict[str, Any]:
    """Sidecar of a tissue's share in each voxel; low `support`: docs/segmentation.md. `donor`: the
    image of the same session that it was found in."""
    return {
        "Description": f"Share of {tissue} in each voxel of the brain mask, 0 to 1",
        "Sources": sources,
        "Segmenter": weights,
        "ContrastSupport": round(support, 3),
        **({"TissuesFrom": donor} if donor else {}),
        **space(template, resolution),
    }


def harmonized(
    sources: list[str], stripped: bool, template: bool, resolution: int, run: Mapping[str, Any]
) -> dict[str, Any]:
    """Sidecar of a harmonized image; `run` names method, target, model, seed and map."""
    return {
        "Description": f"{run['HarmonizationMethod']} to {run['Target']}",
        "Sources": sources,
        "SkullStripped": stripped,
        **space(template, resolution),
        **run,
        "PipelineVersion": __version__,
    }


def relative_uri(raw: Path, path: Path) -> str:
    """``bids:raw:sub-...`` of a file inside the raw dataset; the bare name of one outside.

    The file itself is not resolved: in a DataLad dataset it is a link into ``.git/annex``.
    """
    for inside, root in ((Path(os.path.abspath(path)), Path(os.path.abspath(raw))),
                         (path.parent.resolve() / path.name, raw.resolve())):
        if inside.is_relative_to(root):
            return f"bids:raw:{inside.relative_to(root).as_posix()}"
    return path.name
