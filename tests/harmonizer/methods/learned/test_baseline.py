"""Methods with networks start at local tissue matching, with all that it knows of a scan."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from harmonizer.cohort import Cohort, Scan
from harmonizer.errors import UnavailableError
from harmonizer.methods import registry
from harmonizer.methods.base import ScanContext
from harmonizer.methods.statistical.tissue_matching import TissueMatching
from harmonizer.volume import write_volume
from tests.contract.brains import at_site_b, brain_of, scan_of, three_levels

LEARNED = ("cacd", "disarm", "ihf", "patch_diffusion")
AGES = dict(enumerate((20.0, 35.0, 50.0, 65.0, 80.0, 30.0, 60.0)))


def with_tissues(folder, subject: int, site: str) -> Scan:
    """A scan whose tissues are known, as preprocessing leaves them."""
    scan, paths = scan_of(folder, subject, site), {}
    volume = scan.read()
    for name, probability in three_levels(volume).items():
        paths[name] = folder / f"{scan.scan_id}_{name}.nii.gz"
        write_volume(paths[name], volume.with_data(probability))
    return replace(scan, tissues=paths, age=AGES[subject])


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Cohort:
    folder = tmp_path_factory.mktemp("baseline")
    return Cohort(tuple(with_tissues(folder, p, "A" if p < 4 else "B") for p in range(7)))


@pytest.fixture(scope="module")
def matching(cohort) -> TissueMatching:
    return TissueMatching().fit(cohort)


def blank(name: str, cohort: Cohort, **options):
    """A method whose networks have learned nothing yet."""
    kind = registry.get(name)
    config = kind.config_from({"preset": "tiny", "baseline": "tissue_matching", "steps": 1,
                               "learning_rate": 0.0, "validation_cases": 0,
                               "weight_residual": False, **options})
    return kind(config).fit(cohort, seed=1)


@pytest.fixture(scope="module")
def stranger():
    volume = at_site_b(brain_of(42))
    return volume, three_levels(volume)


@pytest.mark.parametrize("name", LEARNED)
def test_what_has_learned_nothing_is_tissue_matching(name, cohort, matching, stranger, tmp_path):
    backend, (volume, tissues) = blank(name, cohort), stranger
    for source, covariates in (("B", {"age": 70}), (None, {})):
        known = dict(source=source, tissues=tissues, covariates=covariates)
        theirs = matching.harmonize(volume, matching.target("A"), **known)
        ours = backend.harmonize(volume, backend.target("A"), **known)
        np.testing.assert_allclose(ours.in_mask(), theirs.in_mask(), rtol=1e-3)
        loaded = registry.get(name).load(backend.save(tmp_path / str(source)))
        again = loaded.harmonize(volume, loaded.target("A"), **known)
        np.testing.assert_array_equal(again.data, ours.data)
    alone = backend.harmonize(volume, backend.target("A"), tissues=tissues).in_mask()
    assert np.abs(alone - backend.harmonize(volume, backend.target("A"), source="B",
                                            tissues=tissues).in_mask()).max() > 1e-3


def test_references_are_matched_as_tissue_matching_would(cohort, matching, stranger):
    volume, tissues = stranger
    backend, subjects = blank("cacd", cohort), list(cohort.of_site("A"))[:2]
    known = dict(source="B", tissues=tissues)
    ours = backend.harmonize(volume, backend.enroll(subjects, "two"), **known)
    theirs = matching.harmonize(volume, matching.enroll(subjects, "two"), **known)
    np.testing.assert_allclose(ours.in_mask(), theirs.in_mask(), rtol=1e-3)


def test_scanner_free_lies_between_the_sites(cohort, stranger):
    volume, tissues = stranger
    backend = blank("disarm", cohort)
    context = ScanContext("B", tissues=tissues)
    means = [backend.baseline_only(volume, backend.target(label), context).in_mask().std()
             / backend.baseline_only(volume, backend.target(label), context).in_mask().mean()
             for label in ("A", "scanner-free", "B")]
    assert min(means[0], means[2]) < means[1] < max(means[0], means[2])


def test_held_out_people_decide_how_much_is_used(cohort, tmp_path):
    backend = blank("ihf", cohort, validation_cases=1, validation_fraction=0.3,
                    weight_residual=True)
    assert backend.residual_weight_ == 0.0, "a network that changes nothing is worth nothing"
    assert backend.training_.error == backend.training_.baseline_error > 0
    card = (backend.save(tmp_path) / "card.md").read_text()
    assert "tissue_matching alone" in card and "Residual weight: 0.00" in card


def test_tissues_are_looked_for_once(cohort, matching, monkeypatch, tmp_path):
    """By the start, the training, the held-out cases and the styles together; not in a rerun."""
    from harmonizer.deep.training.settings import Resources
    from harmonizer.methods.statistical import tissue_matching

    asked = []

    def found(volume):
        asked.append(volume)
        return three_levels(volume)

    monkeypatch.setitem(tissue_matching.SEGMENTERS, "coarse", lambda: found)
    unknown = Cohort(tuple(replace(scan, tissues={}) for scan in cohort))
    config = registry.get("ihf").config_from(
        {
            "preset": "tiny",
            "baseline": "tissue_matching",
            "steps": 2,
            "validation_cases": 1,
            "validation_fraction": 0.3,
        }
    )
    for _ in range(2):
        backend = registry.get("ihf")(config)
        backend.resources = Resources(folder=tmp_path)
        backend.fit(unknown, seed=1)
        assert len(asked) == len(cohort)
    theirs, ours = matching._state(), backend.baseline_._state()
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("weight", [-0.1, 1.1, np.nan])
def test_a_weight_out_of_range_is_refused(cohort, tmp_path, weight):
    backend = blank("ihf", cohort)
    backend.residual_weight_ = weight
    with pytest.raises(
        UnavailableError, match="residual_weight is not one number from 0 to 1|NaN|finite"
    ):
        registry.get("ihf").load(backend.save(tmp_path))
