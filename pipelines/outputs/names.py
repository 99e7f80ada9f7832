"""Names of everything that is written for one scan; no other module spells a file name.

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
    """Voxel size of the template grid, mm: 1, or 2 in a sloppy run."""
    return 2 if sloppy else 1


def node_name(scan_id: str) -> str:
    """Name of a scan's workflow. Nipype allows letters, digits and underscores only.

    BIDS labels have letters, digits and plus signs, so no two scans share a name.

    >>> node_name("sub-01_acq-a+b_T1w")
    'scan_sub_01_acq_a__b_T1w'
    """
    return "scan_" + scan_id.replace("-", "_").replace("+", "__")


@dataclass(frozen=True)
class ScanPaths:
    """Where the files of one scan lie.

    Attributes
    ----------
    out : the derivative dataset
    folder : ``sub-X[/ses-Y]/anat``, relative to `out`
    stem : source name without suffix, ``sub-X_ses-Y_run-1``
    modality : BIDS suffix, ``T1w``
    resolution : of the template grid, mm
    """

    out: Path
    folder: Path
    stem: str
    modality: str
    resolution: int

    @property
    def scan_id(self) -> str:
        """``<stem>_<modality>``."""
        return f"{self.stem}_{self.modality}"

    @property
    def subject(self) -> str:
        """Label without ``sub-``."""
        return self.folder.parts[0].removeprefix("sub-")

    @property
    def session(self) -> str | None:
        """Label without ``ses-``, or None."""
        return self.folder.parts[1].removeprefix("ses-") if len(self.folder.parts) == 3 else None

    def image(self, desc: str, *, template: bool = False) -> Path:
        """Image of a desc (``preproc``, ``harmonized``), native or on the template grid."""
        return self._anat(f"{self._space(template)}_desc-{desc}_{self.modality}.nii.gz")

    def spread(self, desc: str) -> Path:
        """Map of the standard deviation over what was drawn for the image of a desc."""
        return self._anat(f"{self._space(True)}_desc-{desc}_spread.nii.gz")

    def moved(self, desc: str) -> Path:
        """Map of where anatomy moved in the image of a desc, on the template grid."""
        return self._anat(f"{self._space(True)}_desc-{desc}_moved.nii.gz")

    def mask(self, *, template: bool = False, region: str = "brain") -> Path:
        """Mask of the brain or the head. Scans of one session that differ only in suffix need their
        own: the modality is kept in the name where it is not T1w."""
        label = "" if self.modality == "T1w" else self.modality
        return self._anat(f"{self._space(template)}_desc-{region}{label}_mask.nii.gz")

    def share(self, tissue: str, *, template: bool = False) -> Path:
        """Map of a tissue's share in each voxel; the modality is kept as in `mask`."""
        desc = "" if self.modality == "T1w" else f"_desc-{self.modality}"
        return self._anat(f"{self._space(template)}_label-{tissue}{desc}_probseg.nii.gz")

    def shares_found(self) -> dict[str, Path]:
        """Tissue -> map of its share on the template grid; all of them are there, or none."""
        files = {tissue: self.share(tissue, template=True) for tissue in TISSUES}
        return files if all(path.is_file() for path in files.values()) else {}

    @property
    def to_template(self) -> Path:
        """ITK affine that resamples the scan on the template's grid."""
        return self._anat(f"_from-{self.modality}_to-{TEMPLATE}_mode-image_xfm.txt")

    @property
    def from_template(self) -> Path:
        """ITK affine that resamples the template on the scan's grid."""
        return self._anat(f"_from-{TEMPLATE}_to-{self.modality}_mode-image_xfm.txt")

    @property
    def figures(self) -> Path:
        """Folder of this participant's figures."""
        return self.out / f"sub-{self.subject}" / "figures"

    def uri(self, path: Path) -> str:
        """BIDS URI of a file of this dataset."""
        return f"bids::{path.relative_to(self.out).as_posix()}"

    def _space(self, template: bool) -> str:
        return f"_space-{TEMPLATE}_res-{self.resolution}" if template else ""

    def _anat(self, rest: str) -> Path:
        return self.out / self.folder / f"{self.stem}{rest}"


def sidecar(image: Path) -> Path:
    """The JSON file beside an image."""
    return image.with_name(image.name.removesuffix(".nii.gz") + ".json")
