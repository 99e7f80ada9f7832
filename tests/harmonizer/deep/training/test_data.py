"""The store keeps what was read; draws are even over sites, and pure functions of their seed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from harmonizer.cohort import Cohort
from harmonizer.contrast.intensity import IntensityScale
from harmonizer.deep.training.data import PatchSampler, SlabSampler, VolumeStore, sample_scans
from harmonizer.errors import InputError
from harmonizer.volume import write_mask, write_volume
from tests.contract.brains import brain_of, scan_of, three_levels


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    return [scan_of(folder, subject, "A" if subject < 6 else "B") for subject in range(8)]


@pytest.fixture(scope="module")
def store(scans, tmp_path_factory):
    return VolumeStore.build(Cohort(tuple(scans)), tmp_path_factory.mktemp("store"), (8, 8, 1))


def test_store_holds_the_scaled_box(store, scans):
    assert all(side % 8 == 0 for side in store.box.shape[:2])
    for index in (0, 7):
        volume = store.scans[index].read()
        unit = np.clip(IntensityScale.of(volume.in_mask()).to_unit(volume.data), -1, 1)
        expected = store.box.crop(np.where(volume.mask, unit, -1), -1)
        np.testing.assert_allclose(store.image(index), expected, atol=5e-4)
        assert store.mask(index).sum() == volume.mask.sum()
        np.testing.assert_array_equal(store.areas[index],
                                      store.mask(index).sum(axis=(0, 1), dtype=int))


def test_store_is_reused_until_a_file_changes(scans, tmp_path):
    cohort = Cohort(tuple(scans[:2]))
    VolumeStore.build(cohort, tmp_path)
    before = (tmp_path / "images.f16").stat().st_mtime_ns
    VolumeStore.build(cohort, tmp_path)
    assert (tmp_path / "images.f16").stat().st_mtime_ns == before
    VolumeStore.build(Cohort(tuple(scans[:3])), tmp_path)
    assert (tmp_path / "images.f16").stat().st_mtime_ns != before


def test_tissues_are_kept_where_they_are_wanted(scans, tmp_path):
    cohort = Cohort(tuple(scans[:2]))
    assert not VolumeStore.build(cohort, tmp_path).has_tissues
    assert not (tmp_path / "tissues.u8").exists()
    asked = []

    def found(volume):
        asked.append(volume)
        return three_levels(volume)

    store = VolumeStore.build(cohort, tmp_path, segment=found)
    again = VolumeStore.build(cohort, tmp_path, segment=found)
    assert store.has_tissues and again.has_tissues and len(asked) == 2
    for index, scan in enumerate(cohort):
        maps = three_levels(scan.read())
        for tissue, name in zip(store._tissues[index].transpose(0, 2, 3, 1), ("CSF", "GM", "WM")):
            np.testing.assert_array_equal(tissue, 255 * store.box.crop(maps[name]))
    place = store.box.shape[2] - 1
    np.testing.assert_array_equal(
        store.slab_tissues(1, place, 1)[:, 2], store._tissues[1][:, place]
    )
    np.testing.assert_array_equal(
        store.slab_tissues(1, place, 1)[:, 0], store._tissues[1][:, place - 1]
    )


def test_other_grids_and_constant_scans_are_refused(scans, tmp_path):
    odd = scan_of(tmp_path, 30, "A")
    volume = odd.read()
    write_volume(odd.image, type(volume)(volume.data[1:], volume.affine))
    write_mask(odd.mask, volume.mask[1:], volume.affine)
    with pytest.raises(InputError, match="sub-30_.*lies on another grid"):
        VolumeStore.build(Cohort((*scans[:2], odd)), tmp_path / "store")
    flat = scan_of(tmp_path, 31, "A")
    volume = flat.read()
    write_volume(flat.image, volume.with_data(np.where(volume.mask, 5.0, 0)))
    with pytest.raises(InputError, match="sub-31_.*is constant"):
        VolumeStore.build(Cohort((*scans[:2], flat)), tmp_path / "store")


def test_sites_are_drawn_evenly_and_people_not_twice(scans):
    rng = np.random.default_rng(0)
    drawn = [i for _ in range(300) for i in sample_scans(rng, scans, 2)]
    counts = Counter(scans[i].site for i in drawn)  # 6 subjects at A, 2 at B
    assert counts["A"] == counts["B"] == 300
    many = sample_scans(rng, scans, 50, distinct=True)
    assert sorted(many) == list(range(8))


def test_slabs_are_the_stores_and_pure(store):
    draw = SlabSampler(store, (0, 1, 7), 4, seed=3, neighbors=1)
    one, two = draw(5), draw(5)
    assert one["image"].shape == (4, 3, *store.box.shape[:2])
    assert one["scan"] == two["scan"] and np.array_equal(one["image"], two["image"])
    assert set(one["scan"]) <= {0, 1, 7}
    for n, (index, place) in enumerate(zip(one["scan"], one["place"])):
        np.testing.assert_array_equal(one["image"][n, 1], store.image(index)[:, :, place])
        assert one["mask"][n, 1].sum() > 0
    assert any(draw(5)["place"] != draw(6)["place"] or draw(5, 0)["place"] != draw(5, r)["place"]
               for r in (1, 2))
    assert not np.array_equal(draw(5, 0)["image"], draw(5, 1)["image"])
    middle = SlabSampler(store, (0,), 1, 3, max_offset=1)
    good = SlabSampler(store, (0,), 1, 3).slices(0)
    assert len(middle.slices(0)) == 2 and set(middle.slices(0)) < set(good)


def test_slabs_at_the_end_repeat_the_last_slice(store):
    image, _ = store.slab(0, store.box.shape[2] - 1, 2)
    np.testing.assert_array_equal(image[2], image[4])


def test_patches_are_the_stores_and_reach_all_of_the_brain(store):
    draw = PatchSampler(store, (2,), 3, seed=1, patch=(8, 8, 4))
    seen = np.zeros(store.box.shape, bool)
    for step in range(60):
        batch = draw(step)
        for n, corner in enumerate(batch["corner"]):
            at = tuple(slice(c, c + p) for c, p in zip(corner, (8, 8, 4)))
            np.testing.assert_array_equal(batch["image"][n, 0], store.image(2)[at])
            seen[at] = True
    assert seen[store.mask(2) > 0].all()


def test_intensity_scale_is_exactly_undone():
    values = brain_of(1).in_mask()
    scale = IntensityScale.of(values)
    unit = scale.to_unit(values)
    assert np.quantile(unit, 0.005) == pytest.approx(-1, abs=1e-4)
    assert np.quantile(unit, 0.995) == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(scale.from_unit(unit), values, rtol=1e-5, atol=1e-4)
    other = IntensityScale.of(3 * values + 7).to_unit(3 * values + 7)
    np.testing.assert_allclose(other, unit, atol=1e-4)


def test_scans_of_a_site_may_come_together(scans):
    site = [scan.site for scan in scans]  # six subjects at A, two at B
    for seed in range(5):
        drawn = sample_scans(np.random.default_rng(seed), scans, 4, distinct=True, per_site=2)
        assert sorted(Counter(site[i] for i in drawn).values()) == [2, 2]
        assert len(set(drawn)) == 4
    whole = sample_scans(np.random.default_rng(0), scans, 4, distinct=True, per_site=8)
    assert len(set(whole)) == 4
