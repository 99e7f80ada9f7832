"""The cohort that every backend is fitted on in the contract test."""

from __future__ import annotations

import pytest
from tests.contract.brains import scan_of

from harmonizer.cohort import Cohort


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Four people at site A, three others at site B."""
    folder = tmp_path_factory.mktemp("cohort")
    return Cohort(tuple(scan_of(folder, p, "A" if p < 4 else "B") for p in range(7)))
