"""Two ages of one subject on a coarse grid, made once."""

from __future__ import annotations

import pytest

from harmonizer.phantom import Subject, make_subject


@pytest.fixture(scope="session")
def young() -> Subject:
    return make_subject(3, age=25, sex="F", spacing=4.0)


@pytest.fixture(scope="session")
def old() -> Subject:
    return make_subject(3, age=80, sex="F", spacing=4.0)
