"""The cohort that every backend is fitted on in the contract test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harmonizer.cohort import Cohort
from harmonizer.methods.statistical import tissue_matching
from tests.contract.brains import scan_of, three_levels


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Four subjects at site A, three others at site B."""
    folder = tmp_path_factory.mktemp("cohort")
    return Cohort(tuple(scan_of(folder, p, "A" if p < 4 else "B") for p in range(7)))


@pytest.fixture(scope="session", autouse=True)
def segmenters() -> Iterator[None]:
    """Methods that segment do so by brightness here, under their usual names."""
    with pytest.MonkeyPatch.context() as patch:
        for name in tissue_matching.SEGMENTERS:
            patch.setitem(tissue_matching.SEGMENTERS, name, lambda: three_levels)
        yield
