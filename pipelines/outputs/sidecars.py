"""JSON sidecars of derivative images: sources, processing, site and where the site was read.

Sidecars hold nothing that changes from run to run, such as times or paths: the same input and seed
give the same bytes. What varies is in ``logs/``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harmonizer import __version__
from harmonizer.template import TEMPLATE

__all__ = ["ACQUISITION_FIELDS", "acquisition_metadata", "scan_facts", "space", "preproc", "mask",
           "probability", "harmonized", "relative_uri"]

ACQUISITION_FIELDS = (
    "Manufacturer", "ManufacturersModelName", "MagneticFieldStrength", "DeviceSerialNumber",
    "StationName", "InstitutionName", "SoftwareVersions", "PulseSequenceType",
    "ScanningSequence", "SequenceVariant", "RepetitionTime", "EchoTime", "InversionTime",
    "FlipAngle", "RepetitionTimeExcitation", "ReceiveCoilName", "NonlinearGradientCorrection",
)
"""Fields of a raw sidecar that are copied to the sidecars of all derivatives of the image."""

TEMPLATE_URL = "https://nist.mni.mcgill.ca/icbm-152-nonlinear-atlases-2009/"
RESOLUTIONS = {1: "1 mm isotropic", 2: "2 mm isotropic (sloppy run)"}


def scan_facts(record: Any) -> dict[str, Any]:
    """Return the sidecar fields from which `collect` rebuilds the scan's row of the cohort.

    Parameters
    ----------
    record : ScanRecord
        The raw image with its site and covariates.
    """
    return {
        "ScanId": record.scan_id,
        "Site": record.site,
        "SiteSource": record.site_source,
        "Covariates": {k: v for k, v in sorted(record.covariates.items()) if v is not None},
    }


def acquisition_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a sidecar that describe the acquisition (`ACQUISITION_FIELDS`)."""
    return {key: metadata[key] for key in ACQUISITION_FIELDS if key in metadata}


def space(template: bool, resolution: int) -> dict[str, Any]:
    """Return the fields that BIDS requires of images in template space; none for native images."""
    if not template:
        return {}
    return {"SpatialReference": TEMPLATE_URL, "Resolution": RESOLUTIONS[resolution]}


def preproc(
    sources: list[str], stripped: bool, template: bool, resolution: int, repairs: list[str]
) -> dict[str, Any]:
    """Return the sidecar of a preprocessed image, without acquisition metadata and scan facts.

    Parameters
    ----------
    sources : list of str
        BIDS URIs of the images that it was made from.
    stripped : bool
        Whether the input was brain only.
    template : bool
        Whether the image lies on the template grid.
    resolution : int
        Voxel size of the template grid, mm.
    repairs : list of str
        What was repaired in the header.
    """
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
    """Return the sidecar of a brain mask with its quality check; parameters as in `preproc`."""
    return {
        "Description": "Brain mask",
        "Type": "Brain",
        "Sources": sources,
        "SkullStripped": False,
        **space(template, resolution),
        "QualityCheck": dict(quality),
    }


def probability(sources: list[str], tissue: str, template: bool, resolution: int, weights: str,
                contrast_to_noise: float, fallback: str = "") -> dict[str, Any]:
    """Return the sidecar of a tissue probability map.

    Parameters
    ----------
    sources, template, resolution
        See `preproc`.
    tissue : str
        CSF, GM or WM.
    weights : str
        Name of the segmentation network's weights.
    contrast_to_noise : float
        Contrast-to-noise ratio between the tissues; docs/concepts/segmentation.md explains low
        values.
    fallback : str
        Scan of the same session that was segmented instead of this image; empty: this image.
    """
    return {
        "Description": f"Probability of {tissue} in each voxel of the brain mask, 0 to 1",
        "Sources": sources,
        "Segmenter": weights,
        "ContrastToNoise": round(contrast_to_noise, 3),
        **({"FallbackSegmentation": fallback} if fallback else {}),
        **space(template, resolution),
    }


def harmonized(
    sources: list[str], stripped: bool, template: bool, resolution: int, run: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the sidecar of a harmonized image.

    Parameters
    ----------
    sources, stripped, template, resolution
        See `preproc`.
    run : mapping
        Method, target, model, seed and intensity map.
    """
    return {
        "Description": f"Image harmonized to {run['Target']} with {run['HarmonizationMethod']}",
        "Sources": sources,
        "SkullStripped": stripped,
        **space(template, resolution),
        **run,
        "PipelineVersion": __version__,
    }


def relative_uri(raw: Path, path: Path) -> str:
    """Return the BIDS URI ``bids:raw:sub-...`` of a raw file; only its name if it lies elsewhere.

    The path is not resolved: in a DataLad dataset it is a link into ``.git/annex``.
    """
    for inside, root in ((Path(os.path.abspath(path)), Path(os.path.abspath(raw))),
                         (path.parent.resolve() / path.name, raw.resolve())):
        if inside.is_relative_to(root):
            return f"bids:raw:{inside.relative_to(root).as_posix()}"
    return path.name
