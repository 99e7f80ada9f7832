"""Declaration and validation of the settings of a method.

A config is a frozen dataclass that derives from `Settings` and declares ranges and choices with
`setting`. Values may come from a model folder of unknown origin: text where a number belongs, or a
number that no memory holds, is refused before anything is built from it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

__all__ = ["Settings", "check_types", "is_texts", "setting", "split_texts"]

MAX_INTEGER = 10_000_000  # the longest training has 2.5 million steps
MAX_ITEMS = 64  # of a tuple
MAX_CHARACTERS = 4096  # of a text, such as a path
MAX_BLOCKS = 64  # of fields named "...blocks": each is built
MAX_FLOAT = 1e12


def setting(default: Any, *, low: float | None = None, high: float | None = None,
            above: float | None = None, below: float | None = None,
            choices: Sequence[str] | None = None) -> Any:
    """Declare a field of a config with its valid values.

    Parameters
    ----------
    default : Any
        Default value.
    low, high : float, optional
        Inclusive bounds of a number, or of each number of a tuple.
    above, below : float, optional
        Exclusive bounds.
    choices : sequence of str, optional
        Valid texts.
    """
    return dataclasses.field(default=default, metadata={
        "low": low, "high": high, "above": above, "below": below, "choices": choices})


@dataclasses.dataclass(frozen=True)
class Settings:
    """Base of configs: validates ranges and choices; `ValueError` names the field."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_value(field.name, getattr(self, field.name), field.metadata)


def _check_value(name: str, value: Any, limits: Mapping[str, Any]) -> None:
    if limits.get("choices") is not None and value not in limits["choices"]:
        raise ValueError(f"{name}: expected one of {tuple(limits['choices'])}, got {value!r}.")
    bounds = [limits.get(key) for key in ("low", "high", "above", "below")]
    if value is None or all(bound is None for bound in bounds):
        return
    values = value if isinstance(value, tuple) else (value,)
    if not values or not all(_is_within(one, *bounds) for one in values):
        raise ValueError(f"{name}: expected {_range_text(*bounds)}, got {value}.")


def _is_within(value: float, low: float | None, high: float | None, above: float | None,
               below: float | None) -> bool:
    """Return whether a number lies within bounds; NaN does not."""
    return ((low is None or value >= low) and (high is None or value <= high)
            and (above is None or value > above) and (below is None or value < below))


def _range_text(low: float | None, high: float | None, above: float | None, below: float | None
                ) -> str:
    if high is None and below is None:
        return f"{low:g} or more" if low is not None else f"a number above {above:g}"
    left = f"[{low:g}" if low is not None else f"({above:g}" if above is not None else "(-inf"
    right = f"{high:g}]" if high is not None else f"{below:g})"
    return f"a number in {left}, {right}"


def check_types(config: type, values: Mapping[str, Any]) -> None:
    """Check values against the type hints of a config.

    Raises
    ------
    ValueError
        If a value has another type, or an absurd size; names the field, the expected type and the
        value.
    """
    hints = get_type_hints(config)
    for name, value in values.items():
        too_deep = name.endswith("blocks") and isinstance(value, int) and value > MAX_BLOCKS
        if too_deep or not _fits(value, hints[name]):
            kind = getattr(hints[name], "__name__", None) if not get_args(hints[name]) else None
            raise ValueError(f"{name} is {_shortened(value)}, expected {kind or hints[name]}")


def is_texts(config: type, name: str) -> bool:
    """Return whether a field of a config is a tuple of texts."""
    return get_type_hints(config).get(name) == tuple[str, ...]


def split_texts(text: str) -> tuple[str, ...]:
    """Split a list of texts as the command line gives it.

    >>> split_texts("age, sex")
    ('age', 'sex')
    """
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _fits(value: Any, kind: Any) -> bool:
    parts = get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if get_origin(kind) is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and len(value) <= MAX_ITEMS and _all_fit(value, parts)
    if kind is float:
        return type(value) in (int, float) and abs(value) <= MAX_FLOAT and math.isfinite(value)
    if kind is int:
        return type(value) is int and abs(value) <= MAX_INTEGER
    if kind is str:
        return type(value) is str and len(value) <= MAX_CHARACTERS
    return type(value) is (NoneType if kind is None else kind)


def _all_fit(values: tuple[Any, ...], kinds: tuple[Any, ...]) -> bool:
    if kinds[-1] is Ellipsis:
        return all(_fits(value, kinds[0]) for value in values)
    return len(values) == len(kinds) and all(map(_fits, values, kinds))


def _shortened(value: Any) -> str:
    """Return the text of a value for a message; a number of a million digits is shortened."""
    huge = isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10 ** 30
    return "a huge number" if huge else f"{value!r:.80}"
