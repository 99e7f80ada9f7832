"""Methods text (boilerplate) of a run: ``logs/CITATION.md``, and in the reports.

It is made from the sidecars in the output folder, not from the flags of the command: the last job
of many often has neither method nor target.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from harmonizer import __version__
from harmonizer.errors import UsageError
from harmonizer.files import read_json
from harmonizer.template import TEMPLATE, TEMPLATE_CITATION

from ..outputs.collect import Preprocessed
from ..outputs.names import sidecar
from ..settings import Settings

__all__ = ["methods_text", "software_versions"]

PACKAGES = ("antspyx", "nipype", "nibabel", "numpy", "scipy", "pybids", "nilearn", "torch")
U_NET = "a small 3D U-Net that was trained on synthesized images only"
TEMPLATE_METHOD = (
    "found by registration of a brain-only template (rigid from many starts, then {}; "
    "Avants 2008) to the image after a rough bias correction")
BRAIN_METHODS = {  # by the method in the sidecar of the mask
    "foreground": "the foreground, because the image was brain only",
    "affine": TEMPLATE_METHOD.format("affine"),
    "syn": TEMPLATE_METHOD.format("affine and SyN"),
    "network": f"found by {U_NET} (after Hoopes 2022)",
    "precomputed": "given with the data",
}


def software_versions() -> dict[str, str]:
    """Return the version of each package, this one first."""
    found = {"harmonizer": __version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def methods_text(settings: Settings, found: Sequence[Preprocessed]) -> str:
    """Describe the processing of some scans as Markdown with references, for a paper."""
    software = software_versions()
    text = (
        "# Methods\n\n"
        "This text was written by the pipeline and may be used unchanged (CC0).\n\n"
        f"Images were processed with *harmonizer* {software['harmonizer']}, a BIDS App "
        f"(Gorgolewski 2017) which is based on Nipype {software['nipype']} (Gorgolewski 2011), "
        f"ANTsPyX {software['antspyx']} (Tustison 2021) and NiBabel {software['nibabel']}.\n\n"
        f"## Preprocessing\n\n{_preprocessing(settings, found)}\n\n"
        f"## Harmonization\n\n{_harmonization(settings, found)}\n\n"
    )
    cited = "".join(f"* {where}\n" for who, where in REFERENCES.items() if who in text)
    return f"{text}## References\n\n{cited}"


def _preprocessing(settings: Settings, found: Sequence[Preprocessed]) -> str:
    tissues = ("Cerebrospinal fluid, gray and white matter were segmented by "
               f"{U_NET} (after Billot 2023). ") if any(i.scan.tissues for i in found) else ""
    quality = "Coarse (sloppy) settings were used, which are not suited for research." \
        if settings.sloppy else ""
    return (
        "Each image was processed separately; runs and sessions were not averaged. Header "
        f"geometry was checked and images were reoriented to RAS+. {_brains(found)}"
        "Intensity non-uniformity was corrected inside the brain mask with N4 (Tustison 2010). "
        f"The brain was registered to {TEMPLATE} ({TEMPLATE_CITATION}) by an affine transform "
        f"with mutual information and resampled linearly. {tissues}{quality}"
    ).rstrip()


def _brains(found: Sequence[Preprocessed]) -> str:
    """Describe the brain extraction, each method with its number of images."""
    masks = [sidecar(item.paths.mask(template=True)) for item in found]
    ways = Counter(read_json(path).get("QualityCheck", {}).get("method")
                   for path in masks if path.is_file())
    known = [(BRAIN_METHODS[name], count)
              for name, count in ways.most_common() if name in BRAIN_METHODS]
    if len(known) == 1:
        return f"The brain was {known[0][0]}. "
    words = "; ".join(f"in {count} of {len(found)} images {way}" for way, count in known)
    return f"The brain was: {words}. " if words else ""


@dataclass(frozen=True)
class _Made:
    """How a harmonized image was made, from its sidecar, without facts about the scan."""

    method: str
    version: str
    reference: str
    target: str
    kind: str
    scans: int
    seed: int
    region: str = "brain"
    detail: str = "direct"
    texture: str = "keep"
    baseline: str = "none"
    residual_weight: float = 1.0

    @classmethod
    def of(cls, content: dict[str, Any]) -> _Made:
        return cls(
            str(content["HarmonizationMethod"]), str(content["HarmonizationMethodVersion"]),
            str(content["HarmonizationReference"]), str(content["Target"]),
            str(content["TargetKind"]), int(content["TargetScans"]), int(content["RandomSeed"]),
            content.get("Region", "brain"), content.get("Detail", "direct"),
            content.get("Texture", "keep"),
            content.get("Baseline", "none"), float(content.get("ResidualWeight", 1.0)))

    def in_words(self) -> str:
        """Describe method, target and options in sentences."""
        words = [_summary(self.method), f"The method was {self.method}, version {self.version} "
                 f"({self.reference}); the target was {self._target()}."]
        if self.baseline != "none":
            words.append(f"Images were first harmonized to the target by {self.baseline}; the "
                         f"networks' residual was added with a weight of "
                         f"{self.residual_weight:.2f}; the model card says how it was chosen.")
        if self.texture == "match" and self.detail == "direct":
            words.append("Noise above the level of the target was removed, and part of the "
                         "difference in blur was corrected, in bands of spatial frequency; "
                         "images of the target site kept their texture.")
        if self.detail == "guided":
            words.append("Only the change of contrast was applied to the scan, as smooth maps for "
                         "each tissue; other changes by the method were discarded.")
        outside = ("the whole head was harmonized" if self.region == "head" else
                   "voxels outside the brain mask were scaled by the overall gain")
        words.append(
    "The change was estimated on the template grid and applied on the native grid, "
    f"without resampling; {outside}. Random seed: "
    f"{self.seed}.")
        return " ".join(word for word in words if word)

    def _target(self) -> str:
        if self.kind == "site":
            return f"site {self.target} ({self.scans} scans)"
        if self.kind == "reference":
            return f"{self.scans} reference image(s), {self.target}"
        return "a scanner-free appearance"


def _summary(method: str) -> str:
    from harmonizer.methods import registry

    try:
        return registry.get(method).summary
    except UsageError:  # a method of another package that is not installed
        return ""


def _harmonization(settings: Settings, found: Sequence[Preprocessed]) -> str:
    """Describe how the images of this desc were made."""
    ways: dict[_Made, list[str]] = {}
    for item in found:
        path = sidecar(item.paths.image(settings.desc, template=True))
        if path.is_file():
            modalities = ways.setdefault(_Made.of(read_json(path)), [])
            modalities += [] if item.scan.modality in modalities else [item.scan.modality]
    if not ways:
        return "No image is harmonized yet."
    return "\n\n".join(f"{' and '.join(modalities)} images: {made.in_words()}"
                       for made, modalities in ways.items())


REFERENCES = {  # as cited, in full
    "Avants 2008": "Avants et al. 2008, Med Image Anal 12:26, doi:10.1016/j.media.2007.06.004",
    "Billot 2023": "Billot et al. 2023, Med Image Anal 86:102789, doi:10.1016/j.media.2023.102789",
    TEMPLATE_CITATION: f"Fonov et al. 2009, NeuroImage 47:S102, {TEMPLATE_CITATION}",
    "Gorgolewski 2011":
        "Gorgolewski et al. 2011, Front Neuroinform 5:13, doi:10.3389/fninf.2011.00013",
    "Gorgolewski 2017":
        "Gorgolewski et al. 2017, PLoS Comput Biol 13:e1005209, doi:10.1371/journal.pcbi.1005209",
    "Hoopes 2022":
        "Hoopes et al. 2022, NeuroImage 260:119474, doi:10.1016/j.neuroimage.2022.119474",
    "Tustison 2010":
        "Tustison et al. 2010, IEEE Trans Med Imaging 29:1310, doi:10.1109/TMI.2010.2046908",
    "Tustison 2021": "Tustison et al. 2021, Sci Rep 11:9068, doi:10.1038/s41598-021-87564-6",
}
