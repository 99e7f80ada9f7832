"""Methods text (boilerplate) of a run: ``logs/CITATION.md`` and ``.bib``, and in the reports.

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
from harmonizer.template import TEMPLATE

from ..outputs.collect import Preprocessed
from ..outputs.names import sidecar
from ..settings import Settings
from .citations import SOFTWARE_KEY

__all__ = ["methods_text", "software_versions"]

EVALUATION = (
    "Images were evaluated before harmonization, after each was only given the mean and standard "
    "deviation of the target, and after harmonization. Site effects were measured by the "
    "Wasserstein distance between the intensity distributions of the sites, and by a classifier of "
    "the site that was tested on other subjects. ComBat on features of the images served as a "
    "baseline [@Johnson2007; @Fortin2018]. Anatomical preservation was measured by the structure "
    "term of SSIM [@Wang2004], the agreement of edges and the tissue volumes of each image and its "
    "source. Intervals (95 %) are from bootstrap samples of subjects; p values of several tests "
    "were corrected [@Holm1979; @Benjamini1995].")
METHOD_KEYS = {  # method -> key of its reference
    "cacd": "Scholz2025", "disarm": "Caldera2024", "histogram_matching": "Nyul2000",
    "ihf": "Zhu2026", "moment_matching": "Reinhold2019", "patch_diffusion": "Hache2026",
    "spectrum_swap": "Guan2023", "tissue_matching": SOFTWARE_KEY,
    "unet": f"{SOFTWARE_KEY}; @Dewey2019"}
PACKAGES = ("antspyx", "nipype", "nibabel", "numpy", "scipy", "pybids", "nilearn", "torch")
U_NET = "a small 3D U-Net that was trained on synthesized images only"
TEMPLATE_METHOD = (
    "found by registration of a brain-only template to the image after a rough bias correction "
    "(rigid from many starts, then {}) [@Avants2008]")
BRAIN_METHODS = {  # by the method in the sidecar of the mask
    "foreground": "the foreground, because the image was brain only",
    "affine": TEMPLATE_METHOD.format("affine"),
    "syn": TEMPLATE_METHOD.format("affine and SyN"),
    "network": f"found by {U_NET}, following SynthStrip [@Hoopes2022]",
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
    """Describe the processing of some scans as Markdown for a paper.

    Citations are keys such as ``[@Avants2008]``; `citations` has their BibTeX and a readable form.
    """
    software = software_versions()
    return (
        "# Methods\n\n"
        "This text was written by the pipeline and may be used unchanged (CC0).\n\n"
        f"Images were processed with *brain-harmonizer* {software['harmonizer']} "
        f"[@{SOFTWARE_KEY}], a BIDS App [@Gorgolewski2017] which is based on Nipype "
        f"{software['nipype']} [@Gorgolewski2011], ANTsPyX {software['antspyx']} [@Tustison2021] "
        f"and NiBabel {software['nibabel']}.\n\n"
        f"## Preprocessing\n\n{_preprocessing(settings, found)}\n\n"
        f"## Harmonization\n\n{_harmonization(settings, found)}\n"
        + (f"\n## Evaluation\n\n{EVALUATION}\n"
           if (settings.output_dir / "group_statistics.tsv").is_file() else ""))


def _preprocessing(settings: Settings, found: Sequence[Preprocessed]) -> str:
    tissues = ("Cerebrospinal fluid, gray and white matter were segmented by "
               f"{U_NET}, following SynthSeg [@Billot2023]. "
               if any(i.scan.tissues for i in found) else "")
    quality = "Coarse (sloppy) settings were used, which are not suited for research." \
        if settings.sloppy else ""
    return (
        "Each image was processed separately; runs and sessions were not averaged. Header "
        f"geometry was checked and images were reoriented to RAS+. {_brains(found)}"
        "Intensity non-uniformity was corrected inside the brain mask with N4 [@Tustison2010]. "
        f"The brain was registered to {TEMPLATE} [@Fonov2009] by an affine transform "
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
        cited = (f"[@{METHOD_KEYS[self.method]}]" if self.method in METHOD_KEYS
                 else f"({self.reference})")
        words = [_summary(self.method), f"The method was {self.method}, version {self.version} "
                 f"{cited}; the target was {self._target()}."]
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
