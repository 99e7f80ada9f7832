"""Paths of all files that are written for one scan; no other module builds their names.

A derivative starts with the whole source name without its suffix (BIDS, Derivatives: file naming
conventions). Native files carry no ``space`` entity, template files carry ``space`` and ``res``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harmonizer.template import TEMPLATE
from harmonizer.tissues import TISSUES

__all__ = ["ScanPaths", "LOGS", "MODELS", "TISSUES", "node_name", "resolution_of"]

LOGS = "logs"
MODELS = "models"


def resolution_of(sloppy: bool) -> int:
    """Return the voxel size of the template grid in mm: 1, or 2 in a sloppy run."""
    return 2 if sloppy else 1


def node_name(scan_id: str) -> str:
    """Return the name of a scan's workflow; Nipype allows letters, digits and underscores only.

    BIDS labels have letters, digits and plus signs, so no two scans share a name.

    >>> node_name("sub-01_acq-a+b_T1w")
    'scan_sub_01_acq_a__b_T1w'
    """
    return "scan_" + scan_id.replace("-", "_").replace("+", "__")


@dataclass(frozen=True)
class ScanPaths:
    """Paths of the files of one scan.

    Attributes
    ----------
    out : Path
        Root of the derivative dataset.
    folder : Path
        ``sub-X[/ses-Y]/anat``, relative to `out`.
    stem : str
        Source name without suffix, such as ``sub-X_ses-Y_run-1``.
    modality : str
        BIDS suffix, such as ``T1w``.
    resolution : int
        Voxel size of the template grid, mm.
    """

    out: Path
    folder: Path
    stem: str
    modality: str
    resolution: int

    @property
    def scan_id(self) -> str:
        """Return ``<stem>_<modality>``."""
        return f"{self.stem}_{self.modality}"

    @property
    def subject(self) -> str:
        """Return the participant label without ``sub-``."""
        return self.folder.parts[0].removeprefix("sub-")

    @property
    def session(self) -> str | None:
        """Return the session label without ``ses-``, or None."""
        return self.folder.parts[1].removeprefix("ses-") if len(self.folder.parts) == 3 else None

    def image(self, desc: str, *, template: bool = False) -> Path:
        """Return the image of a desc (``preproc``, ``harmonized``), native or on the template grid."""
        return self._anat(f"{self._space(template)}_desc-{desc}_{self.modality}.nii.gz")

    def uncertainty_map(self, desc: str) -> Path:
        """Return the map of the standard deviation over the samples, on the template grid."""
        return self._anat(f"{self._space(True)}_desc-{desc}_std.nii.gz")

    def anatomy_change(self, desc: str) -> Path:
        """Return the map of anatomy changes in a harmonized image, on the template grid."""
        return self._anat(f"{self._space(True)}_desc-{desc}_anatomychange.nii.gz")

    def mask(self, *, template: bool = False, region: str = "brain") -> Path:
        """Return the mask of the brain or the head.

        Scans of one session that differ only in suffix have different masks. The modality is part
        of the name unless it is T1w.
        """
        label = "" if self.modality == "T1w" else self.modality
        return self._anat(f"{self._space(template)}_desc-{region}{label}_mask.nii.gz")

    def probability(self, tissue: str, *, template: bool = False) -> Path:
        """Return the probability map of a tissue; the modality is part of the name as in `mask`."""
        desc = "" if self.modality == "T1w" else f"_desc-{self.modality}"
        return self._anat(f"{self._space(template)}_label-{tissue}{desc}_probseg.nii.gz")

    def probabilities_found(self) -> dict[str, Path]:
        """Return tissue -> existing probability map on the template grid; empty if one is missing."""
        files = {tissue: self.probability(tissue, template=True) for tissue in TISSUES}
        return files if all(path.is_file() for path in files.values()) else {}

    @property
    def to_template(self) -> Path:
        """Return the ITK affine that resamples the scan onto the template grid."""
        return self._anat(f"_from-{self.modality}_to-{TEMPLATE}_mode-image_xfm.txt")

    @property
    def from_template(self) -> Path:
        """Return the ITK affine that resamples the template onto the scan's grid."""
        return self._anat(f"_from-{TEMPLATE}_to-{self.modality}_mode-image_xfm.txt")

    @property
    def figures(self) -> Path:
        """Return the folder of this participant's figures."""
        return self.out / f"sub-{self.subject}" / "figures"

    def uri(self, path: Path) -> str:
        """Return the BIDS URI of a file of the derivative dataset."""
        return f"bids::{path.relative_to(self.out).as_posix()}"

    def _space(self, template: bool) -> str:
        return f"_space-{TEMPLATE}_res-{self.resolution}" if template else ""

    def _anat(self, rest: str) -> Path:
        return self.out / self.folder / f"{self.stem}{rest}"


def sidecar(image: Path) -> Path:
    """Return the JSON sidecar of an image."""
    return image.with_name(image.name.removesuffix(".nii.gz") + ".json")
