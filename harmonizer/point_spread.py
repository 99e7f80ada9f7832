"""Widths of point spread functions: full width at half maximum, and averaging over a voxel."""

from __future__ import annotations

__all__ = ["BOX_VARIANCE_DIVISOR", "FWHM_PER_STD"]

FWHM_PER_STD = 2.3548  # full width at half maximum of a Gaussian over its standard deviation
BOX_VARIANCE_DIVISOR = 12.0  # averaging over a width w has the variance w^2 / 12
