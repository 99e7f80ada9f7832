"""What a scanner did to each tissue: signs, gain left out, and a figure of three frames."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from harmonizer.contrast.local_statistics import Lattice, LocalStatistics
from harmonizer.reports.site_effect_maps import site_effect_figure, tissue_difference
from harmonizer.template import load_template


@pytest.fixture(scope="module")
def lattice() -> Lattice:
    return Lattice.around(load_template(2), 8.0)


def flat(lattice: Lattice, *levels: float) -> LocalStatistics:
    mean = np.stack([np.full(lattice.shape, level, np.float32) for level in levels])
    return LocalStatistics(mean, 0.1 * mean, np.ones_like(mean))


def test_overall_brightness_is_no_difference(lattice):
    target = flat(lattice, 20, 60, 100)
    np.testing.assert_allclose(tissue_difference(target.scaled(7), target), 0, atol=1e-3)


def test_figure_says_which_tissue_was_brighter_where(lattice):
    """Gray matter 10 % brighter, white 10 % darker at the front only, both about one gain."""
    target, site = flat(lattice, 20, 60, 100), flat(lattice, 20, 60, 100)
    mean = site.mean.copy()
    front = np.arange(lattice.shape[1]) * lattice.step_mm + lattice.affine[1, 3] > 0
    mean[2][:, front] *= 0.8
    percent = tissue_difference(replace(site, mean=mean), target)
    figure = site_effect_figure("birch", "aspen", lattice, percent)
    assert figure.labels == ("fluid", "gray matter", "white matter") and len(figure.frames) == 3
    assert "white matter" in figure.caption and "5th to 95th percentile -20 to +0" in figure.caption
    assert len(set(figure.frames)) == 3
