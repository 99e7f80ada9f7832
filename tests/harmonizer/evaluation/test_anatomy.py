"""The guard on brains whose truth is known: contrast passes, whatever moves anatomy does not."""
from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from harmonizer.cohort import Cohort, Scan
from harmonizer.errors import InputError
from harmonizer.evaluation.cache import cached_summary
from harmonizer.evaluation.questions import anatomy
from harmonizer.evaluation.questions.anatomy import (
    GUARDED,
    anatomy_change_map,
    compare_anatomy,
    edge_displacement,
    match_contrast,
    nearest_overlap,
    overlap,
)
from harmonizer.evaluation.questions.anatomy_limits import (
    Tolerance,
    chance_of_flags,
    check_anatomy,
    learn_tolerance,
    misses_a_voxel,
    tolerance_from_pairs,
)
from harmonizer.evaluation.questions.rescans import noise_level, resampled_noise, simulated_rescan
from harmonizer.volume import Volume, write_mask, write_volume

SHAPE = (40, 44, 40)
SPACING = 2.0
AFFINE = np.diag([SPACING, SPACING, SPACING, 1.0])
LESION = (20, 14, 22)


def ball(center, radius: float) -> np.ndarray:
    """Voxels within `radius` voxels of `center`."""
    away = np.indices(SHAPE) - np.reshape(center, (3, 1, 1, 1))
    return np.sum(away**2, axis=0) <= radius**2


MASK = ball((19.5, 21.5, 19.5), 17)


def brain(subject: int, noise: int = 0, lesion: bool = False) -> Volume:
    """Smooth folds of three tissues in a ball, a subject's own; `noise` draws a visit, and was
    interpolated as in preprocessing."""
    folds = ndimage.gaussian_filter(np.random.default_rng(subject).normal(size=SHAPE), 2.5)
    folds /= folds.std()
    tissue = np.select([folds < -0.8, folds < 0.5], [30.0, 70.0], 110.0)
    tissue = ndimage.gaussian_filter(tissue, 0.6)
    if lesion:
        tissue = np.where(ball(LESION, 3), 45.0, tissue)  # 6 mm, between CSF and gray matter
    grain = resampled_noise(SHAPE, np.random.default_rng(1000 + noise))
    data = tissue + 2 * grain / grain.std()
    return Volume(np.where(MASK, data, 0), AFFINE, MASK)


def segment(volume: Volume) -> np.ndarray:
    """Thresholds at the terciles that `brain` has in any monotone contrast."""
    inside = volume.data[volume.mask]
    low, high = np.quantile(inside, [0.21, 0.69])
    return np.where(volume.mask, 1 + (volume.data > low) + (volume.data > high), 0)


def scan(folder, volume: Volume, who: str, run: str) -> Scan:
    write_mask(folder / "mask.nii.gz", MASK, AFFINE)
    path = write_volume(folder / f"{who}{run}.nii.gz", volume)
    return Scan(f"sub-{who}_run-{run}_T1w", who, None, "T1w", "A", "test", path,
                folder / "mask.nii.gz")


@pytest.fixture(scope="module")
def tolerance(tmp_path_factory):
    """From four subjects scanned twice on one scanner, registered to within 0.3 mm."""
    folder = tmp_path_factory.mktemp("rescans")
    scans = [scan(folder, image, str(subject), visit) for subject in range(4)
             for visit, image in (("1", brain(subject, 1)),
                                  ("2", simulated_rescan(brain(subject, 2), subject)))]
    return learn_tolerance(Cohort(tuple(scans)), segment)


def verdict(source: Volume, result, tolerance, segmented: bool = True):
    result = result if isinstance(result, Volume) else source.with_data(result)
    return check_anatomy(compare_anatomy(source, result, segment if segmented else None), tolerance)


def test_limits_come_from_the_rescans_and_say_so(tolerance):
    assert tolerance.origin.startswith("4 pairs of rescans")
    assert set(tolerance.limits) == {"ssim_structure", "gradient_agreement", "edge_displacement",
                                     "largest_change", "dice", "ravd"}
    assert tolerance.flagged == pytest.approx(1 / 5)
    assert tolerance.limits["ssim_structure"] == pytest.approx(0.90, abs=0.05)
    assert 0.0 < tolerance.limits["largest_change"] < 0.1


@pytest.mark.parametrize("contrast", [
    lambda x: 3 * x + 40,
    lambda x: 100 * (np.maximum(x, 0) / 110) ** 0.7,
    lambda x: x * (1 + 0.15 * np.linspace(-1, 1, SHAPE[0])[:, None, None]),
], ids=["gain and offset", "gamma", "bias field"])
def test_a_change_of_contrast_moves_no_anatomy(tolerance, contrast):
    source = brain(7)
    found = verdict(source, np.where(MASK, contrast(source.data), 0), tolerance)
    assert found.ok, found.reasons


def test_another_noise_of_the_same_brain_is_no_harm(tolerance):
    assert verdict(brain(7, 1), brain(7, 2), tolerance).ok


def test_one_mean_image_for_all_is_caught(tolerance):
    """Whatever the site looks like afterwards: the subject is gone."""
    mean = np.mean([brain(subject).data for subject in range(8)], axis=0)
    found = verdict(brain(0), mean, tolerance)
    assert not found.ok
    assert len(found.reasons) >= 4
    assert any(reason.startswith("structure (SSIM): 0.") for reason in found.reasons)
    another = verdict(brain(0), brain(1), tolerance)
    assert not another.ok and another.values["ssim_structure"] < 0.5


@pytest.mark.parametrize("erased", [True, False], ids=["erased", "painted in"])
def test_a_lesion_erased_or_painted_in_is_caught_and_found(tolerance, erased):
    source, result = brain(3, 1, lesion=erased), brain(3, 1, lesion=not erased)
    found = verdict(source, 2 * result.data, tolerance)
    assert not found.ok
    assert any(reason.startswith("largest local change") for reason in found.reasons)
    assert found.values["largest_change"] > 3 * tolerance.limits["largest_change"]
    moved = anatomy_change_map(source.data, 2 * result.data, MASK, (SPACING,) * 3)
    peak = np.unravel_index(np.abs(moved).argmax(), SHAPE)
    assert np.linalg.norm(np.subtract(peak, LESION)) <= 3
    assert np.abs(moved[~ball(LESION, 8)]).max() < 0.5 * np.abs(moved).max()


def test_a_shifted_image_is_caught(tolerance):
    source = brain(5)
    shifted = verdict(source, np.where(MASK, np.roll(source.data, 1, axis=0), 0), tolerance)
    assert any("displacement of edges" in reason for reason in shifted.reasons)
    assert not shifted.ok


def test_a_blurred_and_a_constant_image_are_caught(tolerance):
    source = brain(5)
    blurred = ndimage.gaussian_filter(source.data, 2) * MASK
    assert not verdict(source, blurred, tolerance).ok
    constant = verdict(source, MASK * 50.0, tolerance, segmented=False)
    assert not constant.ok and len(constant.reasons) == 3


def test_without_rescans_the_cohort_simulates_them(tmp_path):
    cohort = Cohort(tuple(scan(tmp_path, brain(p), str(p), "1") for p in range(3)))
    found = learn_tolerance(cohort, most=6)
    assert found.origin.startswith("6 simulated rescans")
    assert "the cohort has no pairs of real rescans and 3 are needed" in found.origin
    assert found.limits["ssim_structure"] == pytest.approx(0.93, abs=0.03)
    source = brain(8)
    assert verdict(source, 3 * source.data, found, segmented=False).ok
    lesion = brain(8, lesion=True)
    assert not verdict(source, lesion, found, segmented=False).ok


def test_limits_that_would_miss_a_shift_of_one_voxel_are_refused(tmp_path, tolerance):
    """Runs of which one moved by two voxels are no measure of what a scanner repeats to."""
    scans = [scan(tmp_path, image, str(subject), run) for subject in range(4)
             for run, image in (("1", brain(subject, 1)), ("2", brain(subject, 2).with_data(
                 np.roll(brain(subject, 2).data, 2, axis=subject % 3))))]
    cohort = Cohort(tuple(scans))
    loose = tolerance_from_pairs([compare_anatomy(a.read(), b.read()) for a, b in zip(
        scans[::2], scans[1::2])], "x")
    assert misses_a_voxel(cohort, loose) and not misses_a_voxel(cohort, tolerance)
    found = learn_tolerance(cohort, most=6)
    assert found.origin.startswith("6 simulated rescans")
    assert found.origin.endswith("because the limits from its 4 real ones would accept a shift of "
                                 "one voxel")
    assert not misses_a_voxel(cohort, found)


def test_the_noise_is_measured():
    for sd in (1.0, 3.0):
        noise = np.random.default_rng(0).normal(0, sd, SHAPE)
        ramp = np.indices(SHAPE)[0] * 2.0
        assert noise_level(ramp + noise, MASK) == pytest.approx(sd, rel=0.05)


def test_a_simulated_rescan_moves_by_what_it_says():
    spot = Volume(np.where(MASK, np.indices(SHAPE)[1] * 10.0, 0), AFFINE, MASK)
    still = simulated_rescan(spot, 0, shift_mm=0.0, degrees=0.0)
    assert still.data[MASK] == pytest.approx(spot.data[MASK], abs=1e-2)
    away = [np.mean((simulated_rescan(spot, seed, shift_mm=1.0, degrees=0.0).data - spot.data)[
        ball((19.5, 21.5, 19.5), 8)]) / 10 * SPACING for seed in range(40)]
    assert np.abs(away).max() == pytest.approx(1.0, abs=0.1)
    assert np.sqrt(3 * np.mean(np.square(away))) == pytest.approx(1.0, abs=0.3)


def test_contrast_explains_functions_of_intensity_but_not_of_a_lesion():
    source = brain(2).data
    found = match_contrast(source, np.where(MASK, (source - 60) ** 2, 0), MASK)
    inner = MASK & (source > np.percentile(source[MASK], 1)) & (
        source < np.percentile(source[MASK], 99))
    assert found[inner] == pytest.approx((source[inner] - 60) ** 2, abs=60)  # of 0 to 2,700
    assert np.abs(anatomy_change_map(source, 5 * source + 3, MASK)).max() < 0.005
    bright = np.where(ball(LESION, 2), 190.0, source)  # an intensity that nothing else has
    assert match_contrast(bright, source, MASK)[LESION] > 150


def test_a_bias_field_moves_nothing_and_leaves_a_lesion_to_be_seen():
    source = brain(4)
    field = 1 + 0.3 * np.linspace(-1, 1, SHAPE[0])[:, None, None]
    result = source.with_data(source.data * field)
    assert compare_anatomy(source, result)["largest_change"] < 0.07
    assert compare_anatomy(brain(4, lesion=True), result)["largest_change"] > 0.25


def test_edges_of_a_shifted_box():
    """Two faces across the first axis, each an edge of two slices of 3 mm; moved by two slices the
    near slice is 3 mm from the other edge and the far one 6 mm: 4.5 mm on average.
    """
    mask = np.ones(SHAPE, bool)
    slab = np.zeros(SHAPE)
    slab[12:28] = 100.0
    noisy = slab + np.random.default_rng(0).normal(0, 0.1, SHAPE)
    assert edge_displacement(noisy, 7 * noisy, mask, (3.0, 1, 1)) == pytest.approx(0.0, abs=0.01)
    assert math.isnan(edge_displacement(slab, np.ones(SHAPE), mask))
    moved = edge_displacement(noisy, np.roll(noisy, 2, axis=0), mask, (3.0, 1, 1))
    assert moved == pytest.approx(4.5, abs=0.2)


def test_a_bias_field_moves_no_edge(monkeypatch):
    """Half as bright again at one end, the steepest edges lie there; none of them has moved. What
    is left (the field is steep for so small a brain) is less than half of what it would be."""
    source = brain(6)
    field = np.linspace(0.8, 1.2, SHAPE[0], dtype=np.float32)[:, None, None]
    biased = edge_displacement(source.data, source.data * field, MASK)
    moved = edge_displacement(source.data, np.roll(source.data * field, 1, axis=1), MASK)
    assert biased < 0.2 < 0.7 < moved
    monkeypatch.setattr(anatomy, "_local_gain", lambda expected, *_: np.ones(expected.shape))
    assert edge_displacement(source.data, source.data * field, MASK) > 2 * biased


def test_the_removal_of_a_scanner_is_no_change_of_tissue(tolerance):
    """Thresholds at fixed gray levels see other tissues at another gain; anatomy is the same."""
    def fixed(volume: Volume) -> np.ndarray:
        return np.where(volume.mask, 1 + (volume.data > 50) + (volume.data > 90), 0)

    source = brain(7)
    result = source.with_data(1.3 * source.data)
    assert overlap(fixed(source), fixed(result))[1] > 0.3
    found = compare_anatomy(source, result, fixed)
    assert found["dice"] > 0.98 and found["ravd"] < 0.01


def folded(subject: int) -> tuple[Volume, Volume, np.ndarray]:
    """A source where CSF and WM are equally bright, the image that it should become, and tissues
    (I, J, K), 1 to 3."""
    result = brain(subject)
    labels = segment(result)
    grain = resampled_noise(SHAPE, np.random.default_rng(subject))
    data = np.where(labels == 2, 100.0, 60.0) + grain / grain.std()
    return result.with_data(np.where(MASK, data, 0)), result, labels


@pytest.mark.parametrize("moved", [0, 2])
def test_tissues_of_the_source_are_segmented_twice(moved):
    """f(source) of a folded contrast has two tissues; the source itself is segmented correctly.

    The more similar segmentation counts, and a shifted image is flagged."""
    source, result, labels = folded(7)
    result = result.with_data(np.where(MASK, np.roll(result.data, moved, axis=0), 0))

    def knows(volume: Volume) -> np.ndarray:
        """Tissues of source and result; thresholds elsewhere."""
        return (labels if volume is source else
                np.where(MASK, np.roll(labels, moved, axis=0), 0) if volume is result else
                segment(volume))

    found = compare_anatomy(source, result, knows)
    expected = match_contrast(source.data, result.data, MASK)
    alone = overlap(knows(source.with_data(expected)), knows(result))
    assert alone[0] < 0.8
    if moved:
        assert alone[0] < found["dice"] < 0.8
    else:
        assert (found["dice"], found["ravd"]) == (1.0, 0.0)


def test_the_nearer_answer_counts_for_either_number():
    one, two = np.array([[[1, 2, 2, 3, 3, 3]]]), np.array([[[1, 1, 2, 2, 3, 3]]])
    result = np.array([[[1, 2, 3, 3, 3, 3]]])
    assert overlap(one, result)[0] > overlap(two, result)[0]
    assert nearest_overlap([two, one], result) == overlap(one, result)
    lacking = np.array([[[2, 2, 2, 3, 3, 3]]])  # no CSF: its change is not defined
    assert math.isnan(overlap(lacking, result)[1])
    assert nearest_overlap([lacking, one], result) == overlap(one, result)
    assert math.isnan(nearest_overlap([lacking], result)[1])


def test_overlap_by_hand():
    one = np.array([[[1, 2, 2, 3, 3, 3]]])
    two = np.array([[[1, 2, 3, 3, 3, 3]]])
    dice, ravd = overlap(one, two)
    assert dice == pytest.approx(2 * 1 / 3)  # gray matter: 2 and 1 voxels, 1 shared
    assert ravd == pytest.approx(0.5)
    assert overlap(one, one) == (1.0, 0.0)
    without = np.array([[[2, 2, 3]]])  # a tissue that neither has does not count
    assert overlap(without, without) == (1.0, 0.0)
    assert overlap(without, np.array([[[1, 2, 3]]]))[0] == 0.0


def test_the_limit_is_the_right_order_statistic():
    pairs = [{"ssim_structure": 0.8 + i / 1000, "largest_change": i / 100} for i in range(59)]
    found = tolerance_from_pairs(pairs, "x")
    # fractions of the worst other pair: 0.58 / 0.57, 0.2 / 0.199 and, third of 59, 0.199 / 0.2
    assert found.limits == {"ssim_structure": pytest.approx(1 - 0.995 * 0.2),
                            "largest_change": pytest.approx(0.995 * 0.58)}
    assert found.flagged == pytest.approx(3 / 60)
    with pytest.raises(InputError, match="got none"):
        tolerance_from_pairs([], "x")


def test_six_limits_together_err_as_often_as_one_should():
    rng = np.random.default_rng(0)

    def pair() -> dict[str, float]:
        away = 0.02 * np.exp(rng.normal(0, [0.2, 0.3, 0.4, 0.5, 0.3, 0.6]) + rng.normal(0, 0.2))
        return {name: 1 - far if higher else far
                for (name, (_, higher)), far in zip(GUARDED.items(), away)}

    fractions = [np.mean([not check_anatomy(pair(), tolerance).ok for _ in range(20)])
                 for tolerance in
                 (tolerance_from_pairs([pair() for _ in range(20)], "x") for _ in range(150))]
    assert np.mean(fractions) == pytest.approx(1 / 21, abs=0.02)  # 0.048; limits of 1/21 each: 0.15


def test_flags_are_counted_against_chance():
    tolerance = Tolerance({}, "x", pairs=19, flagged=1 / 20)
    assert chance_of_flags(0, 10, tolerance) == pytest.approx(1.0)
    assert chance_of_flags(1, 1, tolerance) == pytest.approx(1 / 20)
    assert chance_of_flags(2, 2, tolerance) == pytest.approx(2 / (20 * 21))  # E[x^2], Beta(1, 19)


def test_noise_that_was_interpolated_is_given_back_at_its_strength():
    rng = np.random.default_rng(0)
    noise = 3 * resampled_noise(SHAPE, rng)
    flat = Volume(np.where(MASK, 100 + noise, 0), AFFINE, MASK)
    assert noise[MASK].std() > 1.5 * noise_level(flat.data, MASK)  # not seen by differences
    again = simulated_rescan(flat, 1, shift_mm=0.0, degrees=0.0)
    assert (again.data - flat.data)[MASK].std() == pytest.approx(
        math.sqrt(2) * noise[MASK].std(), rel=0.1)


def test_verdicts_are_plain_values_for_a_sidecar():
    found = check_anatomy({"ssim_structure": 0.7, "dice": math.nan},
                  tolerance_from_pairs([{"ssim_structure": 0.9, "dice": 0.9}], "one pair"))
    assert found.as_dict() == {
        "AnatomyHeld": False,
        "Reasons": ["structure (SSIM): 0.7, limit 0.9",
                    "overlap of tissues (Dice): not defined, because contrast or a tissue is "
                    "missing"],
        "Measures": {"ssim_structure": 0.7, "dice": None},
        "Limits": {"ssim_structure": 0.9, "dice": 0.9}, "LimitsFrom": "one pair"}


def test_other_grids_are_refused():
    with pytest.raises(InputError, match="on one grid"):
        compare_anatomy(brain(0), Volume(np.ones((5, 5, 5)), AFFINE))


def counting(calls: list[Volume]):
    """`segment`, which notes every image that it is given."""
    def noted(volume: Volume) -> np.ndarray:
        calls.append(volume)
        return segment(volume)

    return noted


def test_the_source_is_segmented_in_the_other_contrast_only_if_a_limit_is_exceeded(tolerance):
    """The verdict is the same as with three segmentations of every image."""
    source = brain(3)
    images = {"contrast": np.where(MASK, 100 * (source.data / 100) ** 0.7, 0),
              "moved": np.roll(source.data, 2, axis=0)}
    for name, data in images.items():
        result, few, many = source.with_data(data), [], []
        quick = compare_anatomy(source, result, counting(few), limits=tolerance.limits)
        full = compare_anatomy(source, result, counting(many))
        assert (len(few), len(many)) == ((2 if name == "contrast" else 3), 3)
        one, two = (check_anatomy(values, tolerance) for values in (quick, full))
        assert one.ok == two.ok == (name == "contrast")
    calls: list[Volume] = []
    compare_anatomy(source, source.with_data(images["moved"]), counting(calls), same_contrast=True)
    assert len(calls) == 2


def test_an_image_is_segmented_once_and_its_labels_are_kept(tmp_path):
    volume, calls = brain(3), []
    noted, image = counting(calls), write_volume(tmp_path / "image.nii.gz", volume)
    first, again = (cached_summary(tmp_path / "cache", volume, [image], noted) for _ in range(2))
    assert len(calls) == 1 and (first.labels == again.labels).all()
    assert first.ratios == again.ratios and list(again.ratios) == ["CSF", "GM", "WM"]
    write_volume(image, brain(4))
    cached_summary(tmp_path / "cache", brain(4), [image], noted)
    assert len(calls) == 2
