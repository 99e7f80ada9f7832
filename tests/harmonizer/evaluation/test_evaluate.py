"""A cohort evaluated end to end on small volumes whose answers are known."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from harmonizer.cohort import Cohort, Scan
from harmonizer.errors import InputError
from harmonizer.evaluation.paired_metrics import label_tissues, measure_cohort, scan_features
from harmonizer.volume import Volume, read_volume, write_mask, write_volume

SHAPE = (20, 22, 18)
GAINS = {"A": 1.0, "B": 3.0}


@pytest.fixture(scope="module")
def mask() -> np.ndarray:
    center = (np.array(SHAPE) - 1).reshape(3, 1, 1, 1) / 2
    return np.sum((np.indices(SHAPE) - center) ** 2, axis=0) < 64


@pytest.fixture(scope="module")
def priors(mask) -> dict[str, np.ndarray]:
    """Three slabs along the first axis: CSF, GM, WM, certain inside the mask."""
    third = np.clip(np.indices(SHAPE)[0] // 7, 0, 2)
    return {name: ((third == n) & mask).astype(np.float32)
            for n, name in enumerate(("CSF", "GM", "WM"))}


@pytest.fixture(scope="module")
def before(tmp_path_factory, mask, priors) -> Cohort:
    """Three subjects at each of two sites; site B has three times the gain."""
    folder = tmp_path_factory.mktemp("before")
    write_mask(folder / "mask.nii.gz", mask, np.eye(4))
    scans = []
    for number in range(6):
        site = "AB"[number % 2]
        rng = np.random.default_rng(number)
        tissue = 40 * priors["CSF"] + 80 * priors["GM"] + 120 * priors["WM"]
        data = GAINS[site] * (tissue + rng.normal(0, 4, SHAPE)) * mask
        path = write_volume(folder / f"{number}.nii.gz", Volume(data, np.eye(4)))
        scans.append(Scan(f"sub-{number}_T1w", str(number), None, "T1w", site, "test", path,
                          folder / "mask.nii.gz"))
    return Cohort(tuple(scans))


@pytest.fixture(scope="module")
def after(before, tmp_path_factory) -> Cohort:
    """The gain undone."""
    folder = tmp_path_factory.mktemp("after")
    scans = []
    for scan in before:
        volume = scan.read()
        path = write_volume(folder / scan.image.name,
                            volume.with_data(volume.data / GAINS[scan.site]))
        scans.append(replace(scan, image=path))
    return Cohort(tuple(scans))


@pytest.fixture(scope="module")
def done(before, after, priors):
    return measure_cohort(before, after, "A", backend="gain", priors=priors)


def test_the_distance_between_sites_falls_to_noise(done):
    table = done.metrics.select(measure="wasserstein_between_sites", tissue="brain")
    raw, rescaled, result = (table.select(stage=stage).values()
                             for stage in ("before", "rescaled", "after"))
    scale = done.metrics.select(measure="intensity_range").values()[0]
    mean = done.metrics.select(measure="mean", stage="before", site="A").values()
    assert raw == pytest.approx([2 * np.mean(mean) / scale], rel=0.02)  # W1 of x against 3 x
    assert rescaled == pytest.approx([0.0], abs=0.01)
    assert result == pytest.approx([0.0], abs=0.01)


def test_tissues_are_measured_apart(done):
    table = done.metrics.select(measure="wasserstein_between_sites", stage="before")
    scale = done.metrics.select(measure="intensity_range").values()[0]
    for tissue, mean in (("CSF", 40), ("GM", 80), ("WM", 120)):
        assert table.select(tissue=tissue).values() == pytest.approx([2 * mean / scale], rel=0.03)


def test_features_and_their_site_share(done):
    feature = done.metrics.select(measure="mean_gm", stage="before", scan="sub-1_T1w")
    assert feature.values() == pytest.approx([240.0], abs=2.0)
    ratio = done.metrics.select(measure="gm_wm_ratio", stage="before")
    assert ratio.values() == pytest.approx([80 / 120] * 6, abs=0.01)
    eta = done.metrics.select(measure="site_eta_squared", reference="mean_gm")
    assert eta.select(stage="before").values() == pytest.approx([1.0], abs=0.01)
    assert eta.select(stage="after").values()[0] < 0.9


def test_a_gain_moves_no_anatomy(done):
    change = done.metrics.select(stage="change")
    edges = change.select(measure="gradient_agreement").values()
    assert edges == pytest.approx([1.0] * 6, abs=1e-4)
    assert change.select(measure="ssim_structure").values() == pytest.approx([1.0] * 6, abs=1e-4)


def test_every_row_names_method_and_target(done):
    assert {row.backend for row in done.metrics} == {"gain"}
    assert {row.target for row in done.metrics} == {"A"}
    assert done.missing == ()


def test_a_scan_without_result_is_measured_before_and_named(before, after):
    part = measure_cohort(before, after.where(lambda scan: scan.subject != "5"), "A")
    assert part.missing == ("sub-5_T1w",)
    assert len(part.metrics.select(scan="sub-5_T1w", stage="before", measure="mean")) == 1
    assert len(part.metrics.select(scan="sub-5_T1w", stage="after")) == 0
    assert set(part.quantiles.column("tissue")) == {"brain"}


def test_a_target_outside_the_cohort_brings_its_own_quantiles(before, after):
    target = np.full(200, 100.0) + np.linspace(-1, 1, 200)
    part = measure_cohort(before, after, "elsewhere", target_quantiles={"T1w": target})
    scale = part.metrics.select(measure="intensity_range").values()[0]
    assert scale == pytest.approx(1.98, rel=0.01)
    assert len(part.metrics.select(measure="wasserstein_to_target", stage="before")) == 8


def test_a_harmonized_image_on_another_grid_is_refused(before, after, tmp_path):
    first = after.scans[0]
    image = write_volume(tmp_path / "x.nii.gz", Volume(np.ones((5, 5, 5)), np.eye(4)))
    mask = write_mask(tmp_path / "m.nii.gz", np.ones((5, 5, 5), bool), np.eye(4))
    wrong = Cohort((replace(first, image=image, mask=mask), *after.scans[1:]))
    with pytest.raises(InputError, match="sub-0_T1w: expected the harmonized image on the grid"):
        measure_cohort(before, wrong, "A")


def test_priors_of_another_resolution_are_refused(before, after, priors):
    small = {name: array[::2] for name, array in priors.items()}
    with pytest.raises(InputError, match="same resolution"):
        measure_cohort(before, after, "A", priors=small)


def test_a_constant_target_is_refused(before, after):
    with pytest.raises(InputError, match="'flat' to have a range"):
        measure_cohort(before, after, "flat", target_quantiles={"T1w": np.ones(200)})


def test_labels_take_the_likeliest_tissue():
    priors = {"CSF": np.array([[[0.6, 0.1, 0.3]]]), "GM": np.array([[[0.3, 0.2, 0.4]]]),
              "WM": np.array([[[0.1, 0.7, 0.3]]])}
    assert label_tissues(priors).tolist() == [[[1, 3, 0]]]
    assert label_tissues(priors, np.array([[[False, True, True]]])).tolist() == [[[0, 3, 0]]]


def test_features_of_known_numbers():
    features = scan_features({"brain": np.arange(101.0), "GM": np.array([2.0]),
                              "WM": np.array([4.0])})
    assert features["mean"] == features["median"] == 50.0
    assert (features["p05"], features["p95"]) == (5.0, 95.0)
    assert features["gm_wm_ratio"] == 0.5
    assert "mean_csf" not in features


def test_only_one_pair_of_volumes_is_open_at_a_time(before, after, monkeypatch):
    """Each scan is read at most three times: before twice, after once."""
    counts: dict[str, int] = {}

    def counted(path, mask=None):
        counts[str(path)] = counts.get(str(path), 0) + 1
        return read_volume(path, mask)

    monkeypatch.setattr("harmonizer.cohort.read_volume", counted)
    measure_cohort(before, after, "A")
    assert set(counts.values()) == {1, 2}
    assert len(counts) == 12


def test_without_a_target_site_the_ruler_is_what_the_scans_became(before, after):
    part = measure_cohort(before, after, "scanner-free")
    assert part.metrics.select(measure="range_ratio").values() == pytest.approx([1.0] * 6, abs=0.05)
    assert part.metrics.select(measure="intensity_range").values() == pytest.approx([95], rel=0.1)


def test_a_method_that_only_fades_images_is_found_out(before, after, tmp_path):
    faded = []
    for scan in after:
        volume = scan.read()
        path = write_volume(tmp_path / scan.image.name, volume.with_data(volume.data * 0.1))
        faded.append(replace(scan, image=path))
    part = measure_cohort(before, Cohort(tuple(faded)), "A")
    assert part.metrics.select(measure="range_ratio").values() == pytest.approx([0.1] * 6, rel=0.05)
