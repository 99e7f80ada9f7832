"""ComBat against neuroCombat 0.2.12, number by number, and against what must be true.

It also agrees with the published output of the R package (ComBatHarmonization, Testing/outputData,
200 features of 10 scans; parametric, with and without covariate, with a reference batch) to 5e-5,
the tolerance at which that output stopped iterating; its table is not copied here.
"""
from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from harmonizer.combat import ComBat
from harmonizer.errors import InputError, UsageError
from harmonizer.evaluation.statistics.combat import (
    age_spline,
    cross_fitted_combat,
    subject_intercepts,
)

SITES = list("AAAABBBBBCCC")
AGES = np.array([20, 34, 51, 62, 25, 33, 48, 57, 70, 29, 44, 66.0])
RAW = np.array([
    [8.198, 16.351, 28.752, 40.261, 49.568], [8.41, 17.195, 27.515, 40.546, 49.117],
    [7.723, 14.983, 26.492, 42.25, 47.551], [5.168, 16.733, 25.737, 35.012, 46.656],
    [10.037, 20.857, 31.687, 38.982, 52.955], [11.18, 16.064, 31.093, 37.408, 52.263],
    [8.311, 18.641, 30.562, 38.687, 51.076], [8.754, 15.967, 28.795, 39.824, 50.595],
    [9.67, 18.933, 27.502, 39.316, 49.949], [7.583, 18.137, 25.062, 36.85, 46.422],
    [7.762, 14.937, 27.038, 33.503, 45.634], [4.86, 19.097, 25.768, 42.995, 45.021]])
NEUROCOMBAT = np.array([
    [9.12358, 17.44838, 29.91415, 39.90461, 50.37246],
    [9.3828, 18.5134, 28.54772, 40.19345, 49.92689],
    [8.70654, 15.80164, 27.52893, 41.82381, 48.35423],
    [6.05433, 17.98322, 26.74531, 35.01913, 47.45646],
    [8.51418, 19.85225, 29.71113, 39.18651, 50.46329],
    [9.5873, 15.37338, 29.10321, 36.90458, 49.72332],
    [6.81056, 17.77351, 28.62211, 38.54343, 48.47344],
    [7.21248, 15.27288, 26.69619, 40.04375, 48.01133],
    [8.05686, 18.03708, 25.33784, 39.2029, 47.40457],
    [8.96531, 17.94129, 27.81453, 38.25364, 49.62443],
    [8.80694, 15.86877, 28.63478, 36.32864, 48.78166],
    [6.50274, 18.46908, 27.33675, 42.40694, 47.87934]])
NEUROCOMBAT_TO_B = np.array([
    [10.82312, 18.23692, 31.74321, 38.56689, 53.0005],
    [10.64434, 18.73159, 30.6469, 38.90086, 52.33675],
    [9.86849, 17.30949, 29.61932, 39.66668, 51.03168],
    [8.11786, 18.37736, 28.89543, 37.94929, 50.24519],
    [10.037, 20.857, 31.687, 38.982, 52.955], [11.18, 16.064, 31.093, 37.408, 52.263],
    [8.311, 18.641, 30.562, 38.687, 51.076], [8.754, 15.967, 28.795, 39.824, 50.595],
    [9.67, 18.933, 27.502, 39.316, 49.949],
    [10.52082, 18.50997, 30.34501, 38.32889, 52.32855],
    [10.10303, 17.22615, 30.41515, 37.9038, 51.44439],
    [8.25848, 18.7354, 29.09894, 40.38138, 50.32345]])


@pytest.mark.parametrize("reference,expected", [(None, NEUROCOMBAT), ("B", NEUROCOMBAT_TO_B)])
def test_row_by_row_as_neurocombat(reference, expected):
    model = ComBat(reference).fit(RAW, SITES, AGES)
    assert model.transform(RAW, SITES, AGES) == pytest.approx(expected, abs=2e-5)


def test_applied_to_one_scan_it_gives_that_scans_row():
    model = ComBat().fit(RAW, SITES, AGES)
    alone = np.vstack([model.transform(RAW[i:i + 1], SITES[i:i + 1], AGES[i:i + 1])
                       for i in range(12)])
    assert alone == pytest.approx(model.transform(RAW, SITES, AGES), abs=1e-12)


def test_without_shrinkage_means_and_stds_of_sites_agree():
    done = ComBat(shrink=False).fit(RAW, SITES).transform(RAW, SITES)
    labels = np.array(SITES)
    means = np.array([done[labels == s].mean(axis=0) for s in "ABC"])
    stds = np.array([done[labels == s].std(axis=0, ddof=1) for s in "ABC"])
    assert np.ptp(means, axis=0) == pytest.approx(np.zeros(5), abs=1e-9)
    assert np.ptp(stds, axis=0) == pytest.approx(np.zeros(5), abs=1e-9)


def test_age_stays_and_the_site_goes():
    rng = np.random.default_rng(0)
    sites = np.array(list("AB" * 40))
    ages = rng.uniform(20, 80, 80) + 10 * (sites == "B")
    signal = -0.05 * ages[:, None] * np.ones(6)
    raw = signal + rng.normal(0, 0.3, (80, 6)) + 4.0 * (sites == "B")[:, None]
    done = ComBat().fit(raw, sites, ages).transform(raw, sites, ages)
    slope = np.polyfit(ages, done.mean(axis=1), 1)[0]
    assert slope == pytest.approx(-0.05, abs=0.005)
    rest = done.mean(axis=1) - np.polyval(np.polyfit(ages, done.mean(axis=1), 1), ages)
    assert abs(rest[sites == "A"].mean() - rest[sites == "B"].mean()) < 0.05


def test_a_constant_feature_passes_through_and_one_feature_alone_works():
    raw = np.column_stack([RAW[:, 0], np.full(12, 7.0)])
    done = ComBat().fit(raw, SITES).transform(raw, SITES)
    assert (done[:, 1] == 7.0).all()
    alone = ComBat().fit(RAW[:, :1], SITES).transform(RAW[:, :1], SITES)
    assert done[:, :1] == pytest.approx(alone, abs=1e-12)
    assert [alone[np.array(SITES) == s].mean() for s in "ABC"] == pytest.approx(
        [alone.mean()] * 3, abs=1e-9)


def test_no_subject_is_in_the_fit_that_harmonizes_it():
    """Spoiling one subject changes those harmonized by a fit with it, not its own fold."""
    subjects = [str(i // 2) for i in range(24)]
    sites = ["A" if i // 2 % 2 else "B" for i in range(24)]
    raw = np.random.default_rng(1).normal(size=(24, 4)) + 3.0 * (np.array(sites) == "A")[:, None]
    done = cross_fitted_combat(raw, sites, subjects)
    assert np.isfinite(done).all()
    gap = done[np.array(sites) == "A"].mean(axis=0) - done[np.array(sites) == "B"].mean(axis=0)
    assert np.abs(gap).max() < 1.0
    spoiled = raw.copy()
    spoiled[:2] += 1000.0
    again = cross_fitted_combat(spoiled, sites, subjects)
    same = np.isclose(again, done, rtol=0, atol=1e-12).all(axis=1)
    assert 2 <= same.sum() <= 6  # the subject's own fold: one to three of twelve
    assert not same[:2].any()


def test_a_site_that_no_fit_could_reach_has_no_number():
    sites = list("AAAABBBBC")
    done = cross_fitted_combat(RAW[:9], sites, [str(i) for i in range(9)])
    assert np.isnan(done[8]).all() and np.isfinite(done[:8]).all()


def test_what_cannot_be_fitted_is_explained():
    with pytest.raises(InputError, match="one scan of C"):
        ComBat().fit(RAW[:10], SITES[:10])
    with pytest.raises(InputError, match="needs two sites"):
        ComBat().fit(RAW[:4], SITES[:4])
    with pytest.raises(InputError, match="cannot be told apart"):
        ComBat().fit(RAW, SITES, np.array([s == "A" for s in SITES], float))
    with pytest.raises(InputError, match="missing or infinite values: feature 5"):
        ComBat().fit(np.where(RAW > 50, np.nan, RAW), SITES)
    with pytest.raises(InputError, match="reference site 'D'"):
        ComBat("D").fit(RAW, SITES)
    with pytest.raises(InputError, match="'D' was not in the fit.*add_site"):
        ComBat().fit(RAW, SITES).transform(RAW[:1], ["D"])
    with pytest.raises(InputError, match="expected the covariates of the fit"):
        ComBat().fit(RAW, SITES, AGES).transform(RAW, SITES)
    with pytest.raises(InputError, match="5 features of the fit"):
        ComBat().fit(RAW, SITES).transform(RAW[:, :4], SITES)
    with pytest.raises(InputError, match="'sex' is missing for 1 of 12"):
        ComBat().fit(RAW, SITES, {"sex": ["n/a", *"FMFMFMFMFMF"]})
    with pytest.raises(UsageError, match="not fitted"):
        ComBat().transform(RAW, SITES)
    with pytest.raises(UsageError, match="no parameter 'refrence'.*'reference'"):
        ComBat().set_params(refrence="A")


def test_text_covariates_are_coded_as_categories_and_keep_their_effect():
    rng = np.random.default_rng(3)
    group = np.array(["HC", "MS", "PD"] * 40)
    sites = np.array(["A"] * 60 + ["B"] * 60)
    effect = np.array([0.0, 1.5, -2.0])[[["HC", "MS", "PD"].index(g) for g in group]]
    raw = effect[:, None] + rng.normal(0, 0.2, (120, 4)) + 3.0 * (sites == "B")[:, None]
    done = ComBat().fit_transform(raw, sites, {"group": group})
    for label, expected in (("MS", 1.5), ("PD", -2.0)):
        found = done[group == label].mean() - done[group == "HC"].mean()
        assert found == pytest.approx(expected, abs=0.1)
    model = ComBat().fit(raw, sites, {"group": group})
    with pytest.raises(InputError, match="category 'AD'"):
        model.transform(raw[:1], sites[:1], {"group": ["AD"]})


def test_a_new_site_is_added_without_changing_the_others():
    rng = np.random.default_rng(4)
    sites = np.array(["A"] * 40 + ["B"] * 40 + ["C"] * 40)
    raw = rng.normal(0, 1, (120, 8))
    raw[sites == "B"] += 2.0
    raw[sites == "C"] = raw[sites == "C"] * 3.0 - 4.0
    old = sites != "C"
    model = ComBat().fit(raw[old], sites[old])
    before = model.transform(raw[old], sites[old])
    model.add_site(raw[~old], "C")
    assert (model.transform(raw[old], sites[old]) == before).all()
    new = model.transform(raw[~old], sites[~old])
    assert new.mean() == pytest.approx(before.mean(), abs=0.1)
    assert new.std() == pytest.approx(before.std(), rel=0.1)
    with pytest.raises(InputError, match="'C' is in the model already"):
        model.add_site(raw[~old], "C")
    with pytest.raises(InputError, match="two or more scans"):
        model.add_site(raw[:1], "D")


def test_fit_on_controls_leaves_the_disease():
    rng = np.random.default_rng(5)
    sites = np.array(["A"] * 60 + ["B"] * 60)
    patient = np.r_[np.arange(60) < 10, np.arange(60) < 45]  # unevenly spread over the sites
    raw = rng.normal(0, 1, (120, 5)) - 2.0 * patient[:, None] + 1.0 * (sites == "B")[:, None]
    done = ComBat().fit(raw[~patient], sites[~patient]).transform(raw, sites)
    assert done[patient].mean() - done[~patient].mean() == pytest.approx(-2.0, abs=0.25)
    naive = ComBat().fit_transform(raw, sites)
    assert naive[patient].mean() - naive[~patient].mean() > -1.7  # part of the disease is lost


def test_a_model_comes_back_from_its_file(tmp_path):
    model = ComBat("B").fit(RAW, SITES, {"age": AGES, "sex": list("FM" * 6)})
    again = ComBat.load(model.save(tmp_path / "model.json"))
    covariates = {"age": AGES, "sex": list("FM" * 6)}
    assert (again.transform(RAW, SITES, covariates)
            == model.transform(RAW, SITES, covariates)).all()
    assert again.get_params() == model.get_params()
    (tmp_path / "bad.json").write_text('{"Format": "harmonizer-combat-1", "Parameters": {}}')
    with pytest.raises(InputError, match="is not a ComBat model"):
        ComBat.load(tmp_path / "bad.json")


def test_a_data_frame_comes_back_as_one():
    frame = pd.DataFrame(RAW, columns=list("vwxyz"), index=[f"s{n}" for n in range(12)])
    done = ComBat().fit_transform(frame, SITES, pd.DataFrame({"age": AGES}, index=frame.index))
    assert list(done.columns) == list("vwxyz") and list(done.index) == list(frame.index)
    assert done.to_numpy() == pytest.approx(NEUROCOMBAT, abs=2e-5)
    with pytest.raises(InputError, match="features of the fit"):
        ComBat().fit(frame, SITES).transform(frame[list("zyxwv")], SITES)


def test_intercepts_are_those_of_a_mixed_model():
    """The variance ratio and the predictions of statsmodels' MixedLM, up to the grid."""
    from statsmodels.regression.mixed_linear_model import MixedLM

    rng = np.random.default_rng(0)
    subjects = np.repeat(np.arange(20), [2, 3] * 10)
    design = np.column_stack([np.ones(50), rng.normal(size=50)])
    y = 2 * rng.normal(size=20)[subjects] + design @ [1.0, 0.5] + rng.normal(size=50)
    found, ratios = subject_intercepts(y[:, None], design, subjects.astype(str))
    fit = MixedLM(y, design, groups=subjects).fit(reml=True)
    wanted = np.array([float(fit.random_effects[who].iloc[0]) for who in subjects])
    assert ratios[0] == pytest.approx(float(fit.cov_re[0, 0]) / fit.scale, rel=0.25)
    assert found[:, 0] == pytest.approx(wanted, abs=0.1)
    assert np.corrcoef(found[:, 0], wanted)[0, 1] > 0.9999


def test_longitudinal_combat_keeps_the_change_within_subjects():
    """Subjects change the scanner between visits: their change is kept, the site effect not."""
    rng = np.random.default_rng(1)
    subjects = np.repeat(np.arange(40), 2)
    visit = np.tile([0.0, 1.0], 40)
    sites = np.where((subjects % 2 == 0) == (visit == 0), "A", "B")
    truth = (3 * rng.normal(size=(40, 5)))[subjects] - 0.5 * visit[:, None]
    truth += 0.1 * rng.normal(size=truth.shape)
    raw = truth + 2.0 * (sites == "B")[:, None]
    done = cross_fitted_combat(raw, sites, subjects.astype(str), visit[:, None], longitudinal=True)
    change = done[visit == 1] - done[visit == 0]
    assert change.mean(axis=0) == pytest.approx(-0.5, abs=0.1)
    wanted = truth[visit == 1] - truth[visit == 0]
    plain = cross_fitted_combat(raw, sites, subjects.astype(str), visit[:, None])
    error = [np.abs(table[visit == 1] - table[visit == 0] - wanted).mean()
             for table in (done, plain)]
    assert error[0] < 0.5 * error[1] and error[0] < 0.15


def test_a_spline_keeps_a_curve_of_age_that_a_line_takes_for_the_site():
    """Site B has the oldest subjects; the feature is level until 55 and then falls."""
    rng = np.random.default_rng(2)
    sites = np.array(["A"] * 60 + ["B"] * 60)
    ages = np.concatenate([rng.uniform(20, 65, 60), rng.uniform(45, 90, 60)])
    truth = -0.08 * np.maximum(ages - 55, 0)[:, None] + 0.1 * rng.normal(size=(120, 4))
    raw = truth + 1.0 * (sites == "B")[:, None]
    subjects = [str(i) for i in range(120)]
    error = []
    for table in (ages[:, None], age_spline(ages)):
        done = cross_fitted_combat(raw, sites, subjects, table, reference="A")
        error.append(np.abs(done - truth).mean())
    assert error[1] < 0.6 * error[0]
    assert age_spline(ages).shape == (120, 3)
