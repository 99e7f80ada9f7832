"""Harmonization of multi-site brain MRI: methods, preprocessing, evaluation and reports.

All functions work on arrays and on `Volume`, which keeps an image's data, affine and mask together.
This package knows neither nipype nor BIDS. The package `pipelines` reads BIDS datasets, runs
workflows and writes derivatives; it imports this package, never the other way round.
docs/architecture.md shows the packages and their dependencies.
"""

__version__ = "0.1.0"
