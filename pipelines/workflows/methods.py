"""The methods text that a run writes of itself: ``logs/CITATION.md``."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from harmonizer import __version__
from harmonizer.template import TEMPLATE, TEMPLATE_CITATION

from ..settings import Settings

__all__ = ["methods_text", "software_versions"]

PACKAGES = ("antspyx", "nipype", "nibabel", "numpy", "scipy", "pybids", "nilearn")


def software_versions() -> dict[str, str]:
    """Version by package, this one first."""
    found = {"harmonizer": __version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def methods_text(settings: Settings) -> str:
    """Markdown: what was done, to be pasted into a paper, with references."""
    from harmonizer.backends import registry

    software = software_versions()
    backend = registry.get(settings.backend)
    return (
        "# Methods\n\n"
        "This text was written by the pipeline and may be used unchanged (CC0).\n\n"
        f"Images were processed with *harmonizer* {software['harmonizer']}, which is based on "
        f"Nipype {software['nipype']} (Gorgolewski 2011), ANTsPyX {software['antspyx']} "
        f"(Tustison 2021) and NiBabel {software['nibabel']}.\n\n"
        f"## Preprocessing\n\n{_preprocessing(settings)}\n\n"
        f"## Harmonization\n\n{backend.summary} ({backend.name}, version {backend.version}; "
        f"{backend.reference}). The target was {_target(settings)}. The change was fitted on the "
        "template grid and applied to the voxels of the subject's own grid, which were not "
        f"resampled; {_outside(settings)}. Each "
        f"modality was harmonized within itself. Random seed: {settings.random_seed}.\n\n"
        f"## References\n\n{REFERENCES}"
    )


def _preprocessing(settings: Settings) -> str:
    strip = {"force": "extracted in every image",
             "skip": "taken from the image's foreground, as the input was given as brain only,"}
    unless = "extracted, unless the background showed that the image was brain only,"
    way = (
        "by a small 3D U-Net that was trained on synthesised images of whole heads alone"
        if settings.skull_strip == "network" else
        "by registration of a brain-only template (rigid from many starts, affine, then SyN; "
        "Avants 2008) to the image after a rough bias correction"
    )
    quality = " A coarse (sloppy) setting was used, which is not for science." \
        if settings.sloppy else ""
    return (
        "Each image was processed by itself; runs and sessions were never averaged. Header "
        "geometry was checked and axes were brought to RAS+. The brain was "
        f"{strip.get(settings.skull_strip, unless)} {way}. "
        "Intensity non-uniformity was corrected inside the brain mask with N4 (Tustison 2010). "
        f"The brain was registered to {TEMPLATE} ({TEMPLATE_CITATION}) by an affine transform "
        f"with mutual information and resampled linearly.{quality}"
    )


def _outside(settings: Settings) -> str:
    """What became of what is no brain."""
    if settings.backend_options.get("region") == "head":
        return "the whole head was harmonized as the brain was"
    return "tissue outside the brain mask was scaled by the overall gain alone"


def _target(settings: Settings) -> str:
    kind = settings.target_kind
    if kind == "default":
        return "the site with most scans"
    if kind == "images":
        return f"{len(settings.target)} reference image(s)"
    return f"the {'site card' if kind == 'card' else 'site'} {settings.target[0]}"


REFERENCES = """\
* Avants et al. 2008, Med Image Anal 12:26, doi:10.1016/j.media.2007.06.004
* Fonov et al. 2009, NeuroImage 47:S102, doi:10.1016/S1053-8119(09)70884-5
* Gorgolewski et al. 2011, Front Neuroinform 5:13, doi:10.3389/fninf.2011.00013
* Gorgolewski et al. 2017, PLoS Comput Biol 13:e1005209, doi:10.1371/journal.pcbi.1005209
* Tustison et al. 2010, IEEE Trans Med Imaging 29:1310, doi:10.1109/TMI.2010.2046908
* Tustison et al. 2021, Sci Rep 11:9068, doi:10.1038/s41598-021-87564-6
"""
