"""Tests of the template and its tissue priors."""
import numpy as np
import pytest

from harmonizer.errors import UsageError
from harmonizer.template import load_template, tissue_priors


@pytest.mark.parametrize("resolution, shape", [(1, (197, 233, 189)), (2, (99, 117, 95))])
def test_grid_is_the_known_one(resolution, shape):
    template = load_template(resolution)
    assert template.shape == shape
    expected = np.diag([resolution] * 3 + [1.0])
    expected[:3, 3] = (-98, -134, -72)
    np.testing.assert_array_equal(template.affine, expected)


def test_brain_has_the_known_volume_and_nothing_lies_outside():
    template = load_template(2)
    liters = template.mask.sum() * 8 / 1e6
    assert 1.85 < liters < 1.92
    assert not template.data[~template.mask].any()
    assert (template.data[template.mask] > 0).all()


def test_tissues_add_up_to_one_in_the_mask_and_to_zero_outside():
    priors, mask = tissue_priors(2), load_template(2).mask
    total = sum(priors[name] for name in ("GM", "WM", "CSF"))
    np.testing.assert_allclose(total[mask], 1, atol=1e-5)
    assert not total[~mask].any()
    # white matter is brighter than gray in a T1 template
    data = load_template(2).data
    assert data[priors["WM"] > 0.9].mean() > data[priors["GM"] > 0.9].mean() + 0.1


def test_shared_arrays_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        tissue_priors(2)["GM"][0, 0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        load_template(2).data[0, 0, 0] = 1


def test_unknown_resolution_lists_the_known():
    with pytest.raises(UsageError, match=r"1, 2, 3.*got 0\.7"):
        load_template(0.7)
