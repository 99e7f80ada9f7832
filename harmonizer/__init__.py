"""Harmonization of multi-site brain MRI: methods, preprocessing, evaluation and reports.

For notebooks::

    import harmonizer as hz

    model = hz.TissueMatching().fit(images, sites=sites, covariates=table)
    result = model.transform(image, target="siteA")

`images` are paths or nibabel images in any space; `result` is a nibabel image on the subject's own
grid. docs/how-to/python.md has more examples.

This package does not depend on nipype or BIDS. The package `pipelines` (`harmonizer.pipelines`
where it is installed) imports it, reads BIDS datasets, runs workflows and writes derivatives.
docs/architecture.md shows the packages and their dependencies.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import Any

try:
    __version__ = version("brain-harmonizer")  # of the git tag, recorded by the installation
except PackageNotFoundError:  # run from a checkout that was not installed
    __version__ = "0+unknown"

_EXPORTS = {
    **dict.fromkeys(("Harmonizer", "TissueMatching", "HistogramMatching", "MomentMatching",
                     "SpectrumSwap", "Cacd", "Disarm", "Ihf", "PatchDiffusion", "SiteCard",
                     "list_backends", "load"), "harmonizer.api.estimators"),
    **dict.fromkeys(("preprocess", "segment"), "harmonizer.api.images"),
    "evaluate": "harmonizer.api.evaluation",
    "ComBat": "harmonizer.combat",
}
__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    """Import a public name when it is used: `import harmonizer` itself remains fast."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'harmonizer' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
