"""Resuming a stopped fit, and starting another fit in the folder of the first."""

from __future__ import annotations

import dataclasses
import os
import signal

import numpy as np
import pytest

from harmonizer.cohort import Cohort
from harmonizer.errors import Terminated, UsageError
from harmonizer.methods import registry
from tests.contract.brains import scan_of

METHOD = "patch_diffusion"  # the quickest
STEPS = 4


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Cohort:
    folder = tmp_path_factory.mktemp("brains")
    return Cohort(tuple(scan_of(folder, p, "A" if p < 2 else "B") for p in range(4)))


def fitted(cohort, folder, **options):
    kind = registry.get(METHOD)
    backend = kind(kind.config_from({"preset": "tiny", "validation_cases": 0, "steps": STEPS,
                                     **options}))
    backend.resources = dataclasses.replace(backend.resources, folder=folder, precision="fp32")
    return backend.fit(cohort, seed=1)


def stopped_at(step: int, monkeypatch) -> None:
    """A scheduler's SIGTERM while this step's images are drawn."""
    kind = registry.get(METHOD)
    usual = kind.Model.training_task

    def task(self, *args):
        made = usual(self, *args)
        draw = made.batch

        def batch(n, rank):
            if n == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return draw(n, rank)

        made.batch = batch
        return made

    monkeypatch.setattr(kind.Model, "training_task", task)


def test_a_fit_that_was_asked_to_end_says_so_and_goes_on(cohort, tmp_path, monkeypatch):
    whole = fitted(cohort, tmp_path / "whole").model_.networks
    with (
        monkeypatch.context() as patch,
        pytest.raises(Terminated, match="received a stop signal and saved"),
    ):
        stopped_at(1, patch)
        fitted(cohort, tmp_path / "stopped")
    again = fitted(cohort, tmp_path / "stopped")
    assert again.training_.steps == STEPS
    for name, network in whole.items():
        for key, value in network.state_dict().items():
            np.testing.assert_array_equal(value, again.model_.networks[name].state_dict()[key])


def test_other_sites_or_images_are_another_training(cohort, tmp_path):
    fitted(cohort, tmp_path)
    first, *rest = cohort.scans
    elsewhere = Cohort((dataclasses.replace(first, site="B"), *rest))
    other = scan_of(first.image.parent, 9, "A")
    others = Cohort((dataclasses.replace(first, image=other.image, mask=other.mask), *rest))
    for changed in (elsewhere, others):
        with pytest.raises(UsageError, match="is of another training"):
            fitted(changed, tmp_path, steps=2 * STEPS)
    assert fitted(cohort, tmp_path, steps=2 * STEPS).training_.steps == 2 * STEPS
