"""Whether the values of a config are of the kinds that its dataclass declares.

A config may come from a stranger's model folder: text where a number belongs, or a number that no
memory holds, is refused before anything is built of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

__all__ = ["check_kinds", "is_texts", "split_texts"]

LARGEST = 10_000_000  # of a whole number; the longest training has 2.5 million steps
LONGEST = 64  # of a list
LONGEST_TEXT = 4096  # characters, of a path too
DEEPEST = 64  # of what is called blocks: each is built
SAFE = 1e12  # of other numbers


def check_kinds(config: type, values: Mapping[str, Any]) -> None:
    """Refuse values that do not fit the fields of a config.

    Raises
    ------
    ValueError
        That names the field, what it expects, and what came.
    """
    hints = get_type_hints(config)
    for name, value in values.items():
        deep = name.endswith("blocks") and isinstance(value, int) and value > DEEPEST
        if deep or not _fits(value, hints[name]):
            kind = getattr(hints[name], "__name__", None) if not get_args(hints[name]) else None
            raise ValueError(f"{name} is {_shown(value)}, expected {kind or hints[name]}")


def is_texts(config: type, name: str) -> bool:
    """Whether a field of a config is a tuple of texts."""
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
        return isinstance(value, tuple) and len(value) <= LONGEST and _all_fit(value, parts)
    if kind is float:
        return type(value) in (int, float) and abs(value) <= SAFE and math.isfinite(value)
    if kind is int:
        return type(value) is int and abs(value) <= LARGEST
    if kind is str:
        return type(value) is str and len(value) <= LONGEST_TEXT
    return type(value) is (NoneType if kind is None else kind)


def _all_fit(values: tuple[Any, ...], kinds: tuple[Any, ...]) -> bool:
    if kinds[-1] is Ellipsis:
        return all(_fits(value, kinds[0]) for value in values)
    return len(values) == len(kinds) and all(map(_fits, values, kinds))


def _shown(value: Any) -> str:
    """A value in a message; a number of a million digits is not one."""
    huge = isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10 ** 30
    return "a huge number" if huge else f"{value!r:.80}"
