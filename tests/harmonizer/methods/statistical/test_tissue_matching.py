"""Tests of local tissue matching: source maps, covariates, traveling subjects, texture."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from harmonizer.cohort import Cohort, Scan
from harmonizer.contrast.texture import measure_texture
from harmonizer.errors import InputError, UsageError
from harmonizer.methods import registry
from harmonizer.methods.statistical import tissue_matching
from harmonizer.methods.statistical.covariates import Column, code_covariates, within_sites
from harmonizer.methods.statistical.regional_pattern import PatternVariances, pattern_variance
from harmonizer.methods.statistical.tissue_matching import TissueMatching, TissueMatchingConfig
from harmonizer.methods.target import Target
from harmonizer.tissues import TISSUES
from harmonizer.volume import Volume, write_mask, write_volume

SHAPE = (24, 26, 22)
AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])
CONTRAST = {"A": (40.0, 80.0, 110.0), "B": (70.0, 150.0, 100.0)}  # B: white matter darker than gray


def _tissues() -> np.ndarray:
    """(3, I, J, K) probabilities 0 or 1: white core, gray shell, rim of CSF, in a box of 90 mm."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij"))
    radius = np.sqrt((grid ** 2).sum(axis=0)) + 0.08 * np.sin(6 * grid[0]) * np.cos(5 * grid[1])
    return np.stack([(radius >= 0.8) & (radius < 0.95), (radius >= 0.55) & (radius < 0.8),
                     radius < 0.55]).astype(np.float32)


TISSUE = _tissues()
MASK = TISSUE.any(axis=0)


def segment(volume: Volume) -> dict[str, np.ndarray]:
    """Return the truth: all subjects have the same anatomy."""
    return dict(zip(("CSF", "GM", "WM"), TISSUE))


@pytest.fixture(autouse=True)
def true_probabilities(monkeypatch):
    for name in tissue_matching.SEGMENTERS:
        monkeypatch.setitem(tissue_matching.SEGMENTERS, name, lambda: segment)


def regional_pattern(number: int, amount: float = 0.1) -> np.ndarray:
    """Return a smooth regional pattern about 1 that only this subject has."""
    noise = np.random.default_rng(number).normal(size=SHAPE)
    smooth = ndimage.gaussian_filter(noise, 4.0, mode="wrap")
    return 1 + amount * (smooth - smooth.mean()) / smooth.std()


def scan_image(number: int, site: str, gain: float = 1.0, age_effect: float = 0.0) -> Volume:
    levels = np.array(CONTRAST[site]) * [1, 1, 1 + age_effect]
    texture = np.random.default_rng(1000 + number).normal(0, 0.03, SHAPE)
    tissue = np.einsum("c,cijk->ijk", levels, TISSUE)
    data = gain * tissue * regional_pattern(number, 0.03) * (1 + texture)
    return Volume(np.where(MASK, data, 0).astype(np.float32), AFFINE, MASK)


def scan_of(folder: Path, number: int, site: str, age: float | None = None, gain: float = 1.0,
            age_effect: float = 0.0) -> Scan:
    name = f"sub-{number:02d}{site}"
    volume = scan_image(number, site, gain, age_effect)
    write_volume(folder / f"{name}.nii.gz", volume)
    write_mask(folder / f"{name}_mask.nii.gz", MASK, AFFINE)
    return Scan(f"{name}_T1w", f"{number:02d}", None, "T1w", site, "test",
                folder / f"{name}.nii.gz", folder / f"{name}_mask.nii.gz", age=age)


@pytest.fixture
def cohort(tmp_path) -> Cohort:
    """Five subjects at A, five others at B, each scan with its own gain."""
    return Cohort(tuple(scan_of(tmp_path, n, "A" if n < 5 else "B", gain=0.5 + 0.2 * n)
                        for n in range(10)))


def weight_of(backend: TissueMatching, volume: Volume, **where) -> float:
    change = backend.intensity_map(volume, backend.target("A"), **where)
    return change.describe()["SourceWeightOfScan"]


def error(after: Volume, truth: Volume) -> float:
    """RMS over the mean, after the best common gain."""
    a, b = after.in_mask(), truth.in_mask()
    return float(np.sqrt(np.mean((a * (a @ b) / (a @ a) - b) ** 2)) / b.mean())


def test_new_subject_is_matched_to_the_other_contrast(cohort):
    """The change is not monotone: no curve can do it. The rest is near the noise of 3 %."""
    backend = TissueMatching().fit(cohort)
    source, truth = scan_image(20, "B", gain=3.0), scan_image(20, "A")
    after = backend.harmonize(source, backend.target("A"), source="B")
    histogram = registry.get("histogram_matching")().fit(cohort)
    by_curve = histogram.harmonize(source, histogram.target("A"))
    assert error(after, truth) < 0.05 < 0.2 < error(by_curve, truth)


def test_weight_of_the_scan_follows_the_number_of_subjects_of_the_site(cohort):
    backend = TissueMatching().fit(cohort)
    usual = scan_image(20, "B")
    assert weight_of(backend, usual, source="B") == pytest.approx(1 / 6, abs=1e-3)
    assert weight_of(backend, usual, source="nowhere") == 1
    assert weight_of(backend, usual) == 1
    assert weight_of(backend, scan_image(20, "A"), source="A") == 0
    half = TissueMatching(TissueMatchingConfig(scan_variance_fraction=0.5)).fit(cohort)
    assert weight_of(half, usual, source="B") == pytest.approx((0.5 + 0.2) / 1.2, abs=1e-3)


def test_one_scan_at_a_site_has_weight_half_and_an_outlying_scan_nearly_one(tmp_path, cohort):
    single = Cohort((*[s for s in cohort if s.site == "A"], scan_of(tmp_path, 30, "B")))
    assert weight_of(TissueMatching().fit(single), scan_image(20, "B"), source="B") == 0.5
    backend = TissueMatching().fit(cohort)
    assert weight_of(backend, scan_image(20, "A"), source="B") > 0.8  # not B's contrast at all


def test_site_maps_keep_the_subjects_pattern_and_scan_maps_do_not(cohort):
    """If the variances of patterns are not known."""
    backend = TissueMatching().fit(cohort)
    backend.pattern_variances_ = PatternVariances()
    source, truth = scan_image(22, "B"), scan_image(22, "A")
    own = regional_pattern(22, 0.03)[TISSUE[2] > 0]

    def pattern(volume: Volume) -> float:
        """Return the correlation with the subject's pattern in white matter."""
        smooth = ndimage.gaussian_filter(volume.data * TISSUE[2], 1.5)
        weight = ndimage.gaussian_filter(TISSUE[2], 1.5)
        return float(np.corrcoef((smooth / np.maximum(weight, 1e-3))[TISSUE[2] > 0], own)[0, 1])

    site, scan = (backend.harmonize(source, backend.target("A"), source=s) for s in ("B", None))
    assert pattern(site) > 0.85 > pattern(scan) + 0.1
    assert error(site, truth) < 0.7 * error(scan, truth)


def scanner_fraction(backend: TissueMatching, **where) -> float:
    change = backend.intensity_map(scan_image(20, "B"), backend.target("A"), **where)
    return change.describe()["SourcePatternFraction"]


def test_half_of_an_unseen_scans_pattern_is_removed_and_less_of_a_sites(cohort):
    """The two sites differ in contrast alone; all patterns are anatomical."""
    backend = TissueMatching().fit(cohort)
    assert backend.pattern_variances_.between_sites < 0.1 * backend.pattern_variances_.within_sites
    unseen, known = scanner_fraction(backend), scanner_fraction(backend, source="B")
    assert 0.5 <= unseen < 0.6
    assert unseen <= known < 1
    assert backend.pattern_variances_.scanner_fraction(0.0) == 1
    source, truth = scan_image(22, "B"), scan_image(22, "A")
    after = backend.harmonize(source, backend.target("A"))
    backend.pattern_variances_ = PatternVariances()
    assert error(after, truth) < 0.85 * error(backend.harmonize(source, backend.target("A")), truth)


def test_nothing_is_removed_where_pattern_variances_cannot_be_estimated(tmp_path, cohort):
    one = cohort.of_site("A")
    assert TissueMatching().fit(one).pattern_variances_ == PatternVariances()
    single = Cohort((one.scans[0], scan_of(tmp_path, 30, "B")))
    backend = TissueMatching().fit(single)
    assert backend.pattern_variances_ == PatternVariances()
    assert scanner_fraction(backend) == 1


def test_a_scan_at_its_target_gets_the_sites_gain_alone(cohort):
    backend = TissueMatching().fit(cohort)
    volume = scan_image(20, "A")
    after = backend.harmonize(volume, backend.target("A"), source="A")
    ratio = after.in_mask() / volume.in_mask()
    assert ratio.std() < 1e-4 * ratio.mean()


def test_subjects_at_all_sites_add_no_error_to_differences_of_sites(tmp_path, cohort):
    both = Cohort(tuple(scan_of(tmp_path, n, site) for n in range(4) for site in "AB"))
    backend = TissueMatching().fit(both)
    assert backend.styles_["A"]["error_variance"] == 0
    assert weight_of(backend, scan_image(20, "B"), source="B") == 0
    assert TissueMatching().fit(cohort).styles_["A"]["error_variance"] == 0.2


def test_gain_of_the_target_is_the_middle_of_its_scans(cohort):
    backend = TissueMatching().fit(cohort)
    after = backend.harmonize(scan_image(20, "B", gain=7), backend.target("A"), source="B")
    gains = [0.5 + 0.2 * n for n in range(5)]
    wanted = np.exp(np.mean(np.log(gains))) * np.median(scan_image(20, "A").in_mask())
    assert np.median(after.in_mask()) == pytest.approx(wanted, rel=0.05)


def skewed(volume: Volume) -> dict[str, np.ndarray]:
    """Label the outer half of white matter as gray where white matter is dark."""
    fluid, gray, white = (TISSUE[n] for n in range(3))
    bright = volume.data[white > 0].mean() > 1.1 * volume.data[gray > 0].mean()
    core = white if bright else white * (ndimage.distance_transform_edt(white) > 4)
    return {"CSF": fluid, "GM": gray + white - core, "WM": core}


def test_traveling_subjects_undo_a_segmentation_error_of_one_scanner(
        tmp_path, monkeypatch):
    """Both fits have the same images; in one, each scan is labeled as another subject."""
    monkeypatch.setitem(tissue_matching.SEGMENTERS, "coarse", lambda: skewed)
    scans = [scan_of(tmp_path, n, site) for n in range(4) for site in "AB"]
    unrelated = [dataclasses.replace(s, subject=s.subject + s.site) for s in scans]
    source, truth = scan_image(20, "A"), scan_image(20, "B")
    known, unknown = (
        error(b.harmonize(source, b.target("B"), source="A"), truth)
        for b in (TissueMatching().fit(Cohort(tuple(some))) for some in (scans, unrelated)))
    assert known < 0.8 * unknown


def test_known_probabilities_are_not_recomputed(tmp_path, monkeypatch, cohort):
    """The fit reads the scan's files, later calls get them; another segmenter computes its own."""
    calls = []

    def counting(volume: Volume) -> dict[str, np.ndarray]:
        calls.append(1)
        return segment(volume)

    for name in tissue_matching.SEGMENTERS:
        monkeypatch.setitem(tissue_matching.SEGMENTERS, name, lambda: counting)
    files = {name: write_volume(tmp_path / f"{name}.nii.gz", Volume(one, AFFINE, None))
             for name, one in segment(scan_image(0, "A")).items()}
    known = Cohort(tuple(dataclasses.replace(scan, tissues=files) for scan in cohort))
    backend = TissueMatching().fit(known)
    source = scan_image(20, "B")
    backend.intensity_map(source, backend.target("A"), source="B", tissues=segment(source))
    assert not calls
    other = TissueMatching(TissueMatchingConfig(segmenter="atropos")).fit(known)
    other.intensity_map(source, other.target("A"), source="B", tissues=segment(source))
    assert len(calls) == len(cohort) + 1


def aged(folder: Path, young_at: str) -> Cohort:
    """Nine subjects a site, white matter 0.5 % darker a year; sites differ in age by 30 years."""
    scans = []
    for number in range(18):
        site = "A" if number < 9 else "B"
        age = 30 + 2.0 * (number % 9) + (0 if site == young_at else 30)
        scans.append(scan_of(folder, number, site, age=age, age_effect=-0.005 * (age - 50)))
    return Cohort(tuple(scans))


def test_age_is_modeled_and_survives_sites_of_different_age(tmp_path):
    """With age, a subject of 65 at old B stays darker at young A; without, age is removed."""
    cohort = aged(tmp_path, "A")
    aware = TissueMatching().fit(cohort)
    blind = TissueMatching(TissueMatchingConfig(covariates=())).fit(cohort)
    assert set(aware.effects_) == {Column("age")} and not blind.effects_
    effect = -0.005 * (65 - 50)
    source, truth = (scan_image(40, s, age_effect=effect) for s in "BA")

    def white_over_gray(volume: Volume) -> float:
        return float(np.median(volume.data[TISSUE[2] > 0]) / np.median(volume.data[TISSUE[1] > 0]))

    wanted = np.log(white_over_gray(truth))
    known, unknown = (
        np.log(white_over_gray(b.intensity_map(source, b.target("A"), source="B",
                                               covariates={"age": 65.0}).apply(source)))
        for b in (aware, blind))
    assert abs(known - wanted) < 0.035
    assert unknown - wanted > 0.08


def test_covariates_are_left_out_where_they_are_unknown_or_data_are_few(tmp_path, cohort):
    few = TissueMatching().fit(cohort)
    assert not few.effects_
    assert {c.name: c.reason for c in few.covariates_} == dict.fromkeys(
        ("age", "sex"), "it is missing for all scans")
    old = aged(tmp_path, "A")
    gap = Cohort((*(dataclasses.replace(s, age=None) for s in old.scans[:4]), *old.scans[4:]))
    assert not TissueMatching().fit(gap).effects_  # 4 of 18 are more than a fifth
    small = TissueMatching().fit(Cohort((*old.scans[:6], *old.scans[9:14])))
    assert not small.effects_ and "leave 8 residual degrees" in small.covariates_[0].reason


def test_a_scan_without_a_value_adds_nothing_to_the_slope(tmp_path):
    """The slope is that of the other scans alone, but for the ridge, which sees fewer of them."""
    old = aged(tmp_path, "A")
    whole = TissueMatching().fit(old)
    gap = Cohort((dataclasses.replace(old.scans[4], age=None), *old.scans[:4], *old.scans[5:]))
    partly = TissueMatching().fit(gap)
    assert partly.covariates_[0].missing == 1 and not partly.covariates_[0].reason
    assert "missing in 1 scan, average assumed" in partly.covariates_[0].in_words()
    one, two = (b.effects_[Column("age")][TISSUES.index("WM")] for b in (whole, partly))
    assert np.median(two / one) == pytest.approx(1, abs=0.1)


def diagnosed(folder: Path, words=("HC", "MS"), unknown: int = -1) -> Cohort:
    """Ten subjects a site; in every second one a diagnosis makes white matter 10 % darker."""
    scans = []
    for number in range(20):
        sick = number % 2
        scan = scan_of(folder, number, "A" if number < 10 else "B", age_effect=-0.1 * sick)
        known = {} if number == unknown else {"diagnosis": words[sick]}
        scans.append(dataclasses.replace(scan, covariates=known))
    return Cohort(tuple(scans))


WITH_DIAGNOSIS = TissueMatchingConfig(covariates=("age", "sex", "diagnosis"))


@pytest.mark.parametrize("words", [("HC", "MS"), ("0", "1"), ("HC", "a/b: c=d")])
@pytest.mark.parametrize("unknown", [-1, 3])
def test_a_category_is_modeled_however_it_is_written(tmp_path, words, unknown):
    backend = TissueMatching(WITH_DIAGNOSIS).fit(diagnosed(tmp_path, words, unknown))
    [(column, effect)] = backend.effects_.items()
    assert column.name == "diagnosis" and column.level == ("" if words[1] == "1" else words[1])
    assert np.median(effect[TISSUES.index("WM")]) < -0.04  # against the scan's own gain
    again = TissueMatching.load(backend.save(tmp_path / "model"))
    source, target = scan_image(40, "B", age_effect=-0.1), backend.target("A")
    maps = [b.intensity_map(source, target, source="B", covariates={"diagnosis": words[1]})
            for b in (backend, again)]
    np.testing.assert_array_equal(*(one.apply(source).data for one in maps))
    assert maps[1].describe()["Covariates"] == ["diagnosis"]
    unseen = again.intensity_map(source, target, source="B", covariates={"diagnosis": "?"})
    assert unseen.describe()["Covariates"] == []
    card = (tmp_path / "model" / "card.md").read_text()
    assert "* age: not modeled, it is missing for all scans" in card
    assert "* diagnosis: modeled (" in card
    assert ("missing in 1 scan," in card) == (unknown == 3)


def test_why_a_covariate_is_not_modeled(tmp_path):
    scans = tuple(dataclasses.replace(s, covariates={
        "site_wise": "HC" if s.site == "A" else "MS", "same": "x", "name": f"p{n}",
        **({"rare": "1"} if s.site == "A" else {})})
        for n, s in enumerate(diagnosed(tmp_path)))
    wanted = ("site_wise", "same", "name", "rare")
    found = {c.name: c.reason for c in code_covariates(scans, wanted)}
    assert found == {
        "site_wise": "it is confounded with the site: all scans of a site have the same value",
        "same": "all scans have the same value",
        "name": "it has 20 different texts (a category has at most 10)",
        "rare": "it is missing for all scans of B"}
    with pytest.raises(UsageError, match="no scan of the fit has a value of 'diagnosys'"):
        code_covariates(tuple(diagnosed(tmp_path)), ("diagnosys",))


def test_three_levels_make_two_columns():
    scans = tuple(Scan(f"s{n}_T1w", f"s{n}", None, "T1w", "AB"[n % 2], "t", Path("x"), Path("y"),
                       covariates={"dx": ("MS", "HC", "NMO")[n // 2 % 3]}) for n in range(12))
    [covariate] = code_covariates(scans, ("dx",))
    assert covariate.levels == ("HC", "MS", "NMO")
    columns, values = within_sites(scans, [covariate])
    assert columns == [Column("dx", "MS"), Column("dx", "NMO")]
    assert values[:6].tolist() == [[1, 0], [1, 0], [0, 0], [0, 0], [0, 1], [0, 1]]


def test_covariates_may_be_given_with_commas():
    assert TissueMatching.config_from({"covariates": "age, sex"}).covariates == ("age", "sex")
    assert TissueMatching.config_from({"covariates": "age"}).covariates == ("age",)
    assert TissueMatching.config_from({"covariates": ""}).covariates == ()
    assert TissueMatching.config_from({"covariates": ["dx"]}).covariates == ("dx",)


def regional_patient(number: int) -> Volume:
    """A scan at B whose white matter is 20 % darker in one half."""
    volume = scan_image(number, "B")
    half = np.zeros(SHAPE, bool)
    half[: SHAPE[0] // 2] = True
    return volume.with_data(np.where(half & (TISSUE[2] > 0), 0.8, 1) * volume.data)


def asymmetry(volume: Volume) -> float:
    """Log ratio of white matter in both halves."""
    white = TISSUE[2] > 0
    half = np.arange(SHAPE[0])[:, None, None] < SHAPE[0] // 2
    return float(np.log(volume.data[white & half].mean() / volume.data[white & ~half].mean()))


def test_patients_of_a_site_without_controls_keep_regional_differences(tmp_path, cohort):
    """All controls of the fit are at A: a patient at B is not matched regionally."""
    controls = cohort.of_site("A")
    patient = regional_patient(30)
    remaining = {}
    for how in ("contrast", "regional"):
        backend = TissueMatching(TissueMatchingConfig(left_out_sites=how))
        backend.left_out_sites_ = ("B",)
        backend.fit(controls)
        backend = TissueMatching.load(backend.save(tmp_path / how))
        after = backend.harmonize(patient, backend.target("A"), source="B")
        remaining[how] = asymmetry(after) / asymmetry(patient)
        white, gray = (np.median(after.data[TISSUE[n] > 0]) for n in (2, 1))
        assert white / gray > 1.2  # the contrast of A, which that of B is not
    assert remaining["contrast"] == pytest.approx(1, abs=0.05)
    assert remaining["regional"] < 0.5
    card = (tmp_path / "contrast" / "card.md").read_text()
    assert "site B: the selection of the fit took none of its scans" in card
    elsewhere = TissueMatching.load(tmp_path / "contrast").harmonize(
        patient, backend.target("A"), source="nowhere")
    ratio = asymmetry(elsewhere) / asymmetry(patient)
    assert ratio == pytest.approx(remaining["regional"], abs=0.05)


def relocated(scan: Scan, folder: Path, mm: float) -> Scan:
    """Return the same voxels with a shifted affine."""
    affine = AFFINE.copy()
    affine[0, 3] += mm
    volume = scan.read()
    image = write_volume(folder / f"relocated_{scan.scan_id}.nii.gz", Volume(volume.data, affine))
    mask = write_mask(folder / f"relocated_{scan.scan_id}_mask.nii.gz", MASK, affine)
    return dataclasses.replace(scan, image=image, mask=mask)


def test_images_on_different_grids_are_refused(tmp_path, cohort):
    other = relocated(cohort.scans[0], tmp_path, 20.0)
    with pytest.raises(InputError, match=r"expected images on one grid, got .* \(tolerance 0.001"):
        TissueMatching().fit(Cohort((other, *cohort.scans[1:])))
    backend = TissueMatching().fit(cohort)
    with pytest.raises(InputError, match="another affine .*Register it to the template"):
        backend.harmonize(other.read(), backend.target("A"), source="B")
    with pytest.raises(InputError, match="another affine"):
        backend.enroll([other], "elsewhere")
    whole = other.read()
    far = whole.affine.copy()
    far[0, 3] += 60
    elsewhere = Volume(np.pad(whole.data, 1), far, np.pad(whole.mask, 1))
    with pytest.raises(InputError, match="where the brains of the fit lie"):
        backend.harmonize(elsewhere, backend.target("A"))
    curve = registry.get("histogram_matching")().fit(cohort)  # uses intensities alone
    curve.harmonize(other.read(), curve.target("A"))


def test_model_with_covariates_comes_back_from_its_folder(tmp_path):
    backend = TissueMatching().fit(aged(tmp_path, "A"))
    again = TissueMatching.load(backend.save(tmp_path / "model"))
    source = scan_image(40, "B")
    one, two = (b.intensity_map(source, b.target("A"), source="B", covariates={"age": 65.0})
                for b in (backend, again))
    np.testing.assert_array_equal(one.apply(source).data, two.apply(source).data)
    assert one.describe() == two.describe() and one.describe()["Covariates"] == ["age"]


def test_target_of_another_lattice_is_refused(cohort):
    fine = TissueMatching().fit(cohort)
    coarse = TissueMatching(TissueMatchingConfig(step_mm=8)).fit(cohort)
    with pytest.raises(
        InputError, match="its numbers do not belong to tissue_matching .*mean maps"
    ):
        fine.harmonize(scan_image(20, "B"), coarse.target("A"))


@pytest.mark.parametrize("options, message", [
    ({"sigma_mm": 1}, r"sigma_mm: expected a number in \[4, 30\], got 1"),
    ({"scan_variance_fraction": 2}, r"expected a number in \[0, 1\], got 2"),
    ({"segmenter": "hand"}, "segmenter: expected one of .*'network'"),
    ({"left_out_sites": "all"}, "left_out_sites: expected one of .*'contrast', 'regional'"),
])
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        TissueMatching.config_from(options)


def test_offsets_and_gains_have_no_regional_pattern(cohort):
    backend = TissueMatching().fit(cohort)
    _, one = backend.statistics_of(backend.styles_["A"])
    offsets = np.array([0.8, 1.2, 1.1], np.float32)[:, None, None, None]
    assert pattern_variance(dataclasses.replace(one, mean=one.mean * offsets), one) < 1e-10
    ramp = np.linspace(0.9, 1.1, one.mean.shape[1], dtype=np.float32)[None, :, None, None]
    bent = dataclasses.replace(one, mean=one.mean * ramp)
    variances = PatternVariances(between_sites=0.001, within_sites=0.002)
    assert pattern_variance(bent, one) > 1e-4
    assert variances.scanner_fraction(1.0) == pytest.approx((1 + 1 / 3) / 2)
    left = variances.shrink(bent, one, 1.0)
    expected = 4 / 9 * pattern_variance(bent, one)
    assert pattern_variance(left, one) == pytest.approx(expected, rel=1e-3)
    assert variances.shrink(bent, one, 0.0) is bent


FINE = np.diag([1.5, 1.5, 1.5, 1.0])


def grainy(number: int, site: str, noise: float) -> Volume:
    """Like `scan_image` on voxels of 1.5 mm, with white noise of this fraction of each level."""
    volume = scan_image(number, site)
    blurred = ndimage.gaussian_filter(
        np.einsum("c,cijk->ijk", np.array(CONTRAST[site]), TISSUE), 0.6)
    grain = np.random.default_rng(2000 + number).normal(0, noise * 100, SHAPE)
    return Volume(np.where(MASK, blurred + grain, 0).astype(np.float32), FINE, volume.mask)


@pytest.fixture
def noisy_and_quiet(tmp_path) -> Cohort:
    """Four subjects at noisy A, four others at quiet B."""
    scans = []
    for number in range(8):
        site, name = ("A", 0.06) if number < 4 else ("B", 0.02)
        volume = grainy(number, site, name)
        image = write_volume(tmp_path / f"{number}.nii.gz", volume)
        mask = write_mask(tmp_path / f"{number}_mask.nii.gz", MASK, FINE)
        scans.append(Scan(f"sub-{number}_T1w", str(number), None, "T1w", site, "test", image, mask))
    return Cohort(tuple(scans))


def noise_in_white(volume: Volume) -> float:
    return float(measure_texture(volume, TISSUE).noise[2])


def test_texture_falls_to_the_targets_noise_and_keep_leaves_it(noisy_and_quiet):
    backend = TissueMatching().fit(noisy_and_quiet)
    keep = TissueMatching(TissueMatchingConfig(texture="keep")).fit(noisy_and_quiet)
    source, target = grainy(20, "A", 0.06), backend.target("B")
    matched, kept_one = (one.harmonize(source, target, source="A") for one in (backend, keep))
    level = float(target.style["texture_noise"][2])
    assert level < noise_in_white(matched) < 0.7 * noise_in_white(kept_one)
    assert "Texture" in backend.intensity_map(source, target, source="A").describe()
    assert "Texture" not in keep.intensity_map(source, target, source="A").describe()
    assert backend.describe_model() == {"Texture": "match"}


def test_quiet_scan_gets_no_noise_and_the_targets_own_scan_keeps_its_texture(noisy_and_quiet):
    backend = TissueMatching().fit(noisy_and_quiet)
    keep = TissueMatching(TissueMatchingConfig(texture="keep")).fit(noisy_and_quiet)
    noisy, again = grainy(20, "A", 0.06), grainy(21, "A", 0.06)
    own = backend.harmonize(noisy, backend.target("A"), source="A")
    np.testing.assert_array_equal(
        own.data, keep.harmonize(noisy, keep.target("A"), source="A").data)
    unnamed = backend.harmonize(noisy, backend.target("A"))  # the site is not given
    plain, rescan = (keep.harmonize(one, keep.target("A")) for one in (noisy, again))

    def rms(one: Volume, other: Volume) -> float:
        return float(np.sqrt(np.mean((one.in_mask() - other.in_mask()) ** 2)))

    assert rms(unnamed, plain) < 0.25 * rms(rescan, plain)


def test_texture_numbers_of_a_card_are_checked(noisy_and_quiet):
    backend = TissueMatching().fit(noisy_and_quiet)
    target = backend.target("B")
    spoiled = dataclasses.replace(target, style={**target.style, "texture_noise": -np.ones(3)})
    with pytest.raises(InputError, match="texture_noise"):
        backend.harmonize(grainy(20, "A", 0.06), spoiled)
    with pytest.raises(UsageError, match="texture: expected one of"):
        TissueMatching.config_from({"texture": "smooth"})


def test_site_cards_of_every_method_hold_texture_numbers_where_tissues_are_known(
        noisy_and_quiet, tmp_path):
    maps = {name: write_volume(tmp_path / f"{name}.nii.gz", Volume(one, FINE, None))
            for name, one in zip(("CSF", "GM", "WM"), TISSUE)}
    cohort = Cohort(tuple(dataclasses.replace(scan, tissues=maps) for scan in noisy_and_quiet))
    kind = registry.get("histogram_matching")
    backend = kind().fit(cohort)
    noise = {site: float(backend.target(site).style["texture_noise"][2]) for site in "AB"}
    assert noise["A"] > 2 * noise["B"] > 0
    again = kind.load(backend.save(tmp_path / "model"))
    np.testing.assert_array_equal(again.target("A").style["texture_noise"],
                                  backend.target("A").style["texture_noise"])
    card = backend.enroll(cohort.of_site("B").scans, "B2")
    loaded = Target.load(card.save(tmp_path / "B2.safetensors"))
    assert loaded.style["texture_noise"][2] == pytest.approx(noise["B"])
    result = again.harmonize(grainy(20, "A", 0.06), loaded)
    assert np.isfinite(result.data).all()
    assert "texture_noise" not in kind().fit(noisy_and_quiet).target("A").style
