"""Tests of simulated anatomies: complete, reproducible, different, and aging."""

from __future__ import annotations

import numpy as np
import pytest

from harmonizer.errors import UsageError
from harmonizer.phantom import PHANTOM_TISSUES, make_deformation, make_subject
from harmonizer.phantom.anatomy import (
    DEFORMATION_LATTICE_MM,
    _exponential,
    _look_up,
    _points,
    _smooth_noise,
)


def _fraction(subject, name):
    return subject.fractions[PHANTOM_TISSUES.index(name)]


def _volumes_ml(subject):
    """Milliliters of each tissue inside the brain's surface; GM includes the deep nuclei."""
    voxel = subject.spacing**3 / 1000
    csf, gm, wm, deep = (float((subject.fractions[i] * subject.brain).sum()) * voxel
                         for i in range(4))
    brain, ventricles = (float(a.sum()) * voxel for a in (subject.brain, subject.ventricles))
    return {"csf": csf, "gm": gm + deep, "wm": wm, "brain": brain, "ventricles": ventricles}


def _jacobian(deformation):
    """(I, J, K) determinant of the deformation on its lattice; positive where nothing folds."""
    gradient = [np.gradient(part, DEFORMATION_LATTICE_MM) for part in deformation.displacement]
    matrix = np.moveaxis(np.array(gradient), (0, 1), (-2, -1)) + np.eye(3)
    return np.linalg.det(matrix) / np.prod(deformation.size)


def test_shares_are_shares(young):
    total = young.fractions.sum(axis=0)
    assert young.fractions.min() >= -1e-5
    assert total.max() <= 1 + 1e-4
    brain = young.brain > 0.999
    assert total[brain] == pytest.approx(1, abs=1e-4), "a brain has no air in it"
    inner = sum(_fraction(young, name) for name in ("csf", "gm", "wm", "deep"))
    assert inner[brain] == pytest.approx(1, abs=1e-4), "nor bone"


def test_the_head_has_a_skull_between_brain_and_scalp(young):
    """Along a ray to the left from the brain's middle: brain, fluid, bone, scalp, air."""
    middle = np.round(np.linalg.inv(young.affine) @ [0, -15, 30, 1])[:3].astype(int)
    ray = young.fractions[:, : middle[0], middle[1], middle[2]][:, ::-1]
    soft = _sum(ray, "fat", "skin", "muscle")
    bone = _sum(ray, "bone", "marrow")
    brain = young.brain[: middle[0], middle[1], middle[2]][::-1]
    places = [(a * np.arange(len(a))).sum() / a.sum() for a in (brain, bone, soft)]
    assert places[0] < places[1] < places[2]
    assert bone.sum() * 4 == pytest.approx(6.5, abs=3.5), "mm of bone"
    assert ray.sum(axis=0)[-1] == 0, "then air"


def _sum(ray, *names):
    return sum(ray[PHANTOM_TISSUES.index(name)] for name in names)


def test_the_same_seed_is_the_same_person_bit_by_bit(young):
    again = make_subject(3, age=25, sex="F", spacing=4.0)
    for name in ("fractions", "texture", "brain", "ventricles"):
        assert np.array_equal(getattr(again, name), getattr(young, name))


def test_another_seed_is_another_person(young):
    other = make_subject(4, age=25, sex="F", spacing=4.0)
    assert np.abs(other.fractions - young.fractions).mean() > 1e-3
    assert _volumes_ml(other)["brain"] != pytest.approx(_volumes_ml(young)["brain"], rel=1e-4)


def test_age_widens_the_ventricles_and_thins_the_cortex():
    lives = [_volumes_ml(make_subject(7, age, "F", 4.0)) for age in (20, 40, 60, 80)]
    ventricles, gm, csf = (np.array([v[k] for v in lives]) for k in ("ventricles", "gm", "csf"))
    assert (np.diff(ventricles) > 0).all() and (np.diff(csf) > 0).all()
    assert (np.diff(gm) < 0).all()
    assert 1.7 < ventricles[-1] / ventricles[0] < 3.5
    assert 0.78 < gm[-1] / gm[0] < 0.92
    brains = [v["brain"] for v in lives]
    assert max(brains) / min(brains) < 1.01, "the skull does not shrink"


def test_old_ventricles_are_filled_with_fluid(old):
    fluid = (_fraction(old, "csf") * old.ventricles).sum() / old.ventricles.sum()
    assert 0.7 < fluid < 1


def test_men_have_heads_an_eighth_larger_in_volume():
    woman, man = (make_deformation(9, 40, sex).size.prod() for sex in "FM")
    assert man / woman == pytest.approx(1.12, abs=0.02)


@pytest.mark.parametrize("seed", range(3))
def test_nothing_folds(seed):
    jacobian = _jacobian(make_deformation(seed, age=90))
    assert 0.1 < jacobian.min() < 1 < jacobian.max() < 10


def test_the_flow_of_a_velocity_is_undone_by_its_opposite():
    rng, origin = np.random.default_rng(0), np.array([-60.0, -60.0, -60.0])
    velocity = np.stack([4 * _smooth_noise(rng, (25, 25, 25), 5.0) for _ in range(3)])
    there, back = (_exponential(sign * velocity, origin, 5) for sign in (1, -1))
    points = _points(origin, (25, 25, 25), DEFORMATION_LATTICE_MM)
    round_trip = there + _look_up(back, points + there, origin)
    inner = (slice(None), *[slice(4, -4)] * 3)
    assert np.abs(there[inner]).max() > 5
    assert np.abs(round_trip[inner]).max() < 0.5  # mm


def test_a_person_is_the_same_at_every_voxel_size(young):
    fine = make_subject(3, age=25, sex="F", spacing=2.0)
    for name, volume in _volumes_ml(fine).items():
        thin = name in ("csf", "ventricles")  # narrower than a coarse voxel
        blur = 0.2 if thin else 0.04
        assert _volumes_ml(young)[name] == pytest.approx(volume, rel=blur), name
    center = [_centroid(p) for p in (fine, young)]
    assert center[0] == pytest.approx(center[1], abs=0.5)


def _centroid(subject):
    where = np.argwhere(subject.brain > 0.5).mean(axis=0)
    return (subject.affine @ [*where, 1])[:3]


def test_without_skull_only_the_brain_is_left(young):
    bare = young.without_skull()
    assert bare.fractions[:, young.brain == 0].max() == 0
    inside = young.brain == 1
    assert bare.fractions[:, inside] == pytest.approx(young.fractions[:, inside])


@pytest.mark.parametrize(("wrong", "message"), [
    ({"age": 130}, "5 to 100 years, got 130"),
    ({"sex": "X"}, "expected sex 'F' or 'M', got 'X'"),
    ({"spacing": 3.0}, "1, 2 or 4 mm, got 3"),
])
def test_impossible_people_are_refused(wrong, message):
    with pytest.raises(UsageError, match=message):
        make_subject(1, **wrong)
