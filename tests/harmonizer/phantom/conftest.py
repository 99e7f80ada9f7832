"""Two ages of one person on a coarse grid, made once."""

from __future__ import annotations

import pytest

from harmonizer.phantom import Person, make_person


@pytest.fixture(scope="session")
def young() -> Person:
    return make_person(3, age=25, sex="F", spacing=4.0)


@pytest.fixture(scope="session")
def old() -> Person:
    return make_person(3, age=80, sex="F", spacing=4.0)
