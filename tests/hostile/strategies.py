"""What a stranger might write: JSON of any shape, changed arrays, bytes with a few of them flipped.

`HARMONIZER_FUZZ=N` draws N examples a test, new ones each time; without it a test draws few, the
same each time.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from harmonizer.errors import HarmonizerError, InternalError

LONG = int(os.environ.get("HARMONIZER_FUZZ", "0"))
NASTY_TEXT = ("", ".", "..", "../../up", "/etc/passwd", "a/b", "a\x00b", "\ud800", "n/a", "NaN",
              "x" * 400, "sub-01", "-", "\t", "\n", "Ünï çødé", "$(id)", "%s{0}", "1e999", "None")
TEXT = st.one_of(st.sampled_from(NASTY_TEXT), st.text(max_size=12))
NUMBERS = st.one_of(st.integers(-3, 3), st.integers(), st.sampled_from((10 ** 400, -10 ** 30)),
                    st.floats(allow_nan=True, allow_infinity=True))
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3),
                            st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=8,
)
DEPTH = 200_000  # brackets in brackets: more than any parser's stack


def fuzz(few: int) -> Callable[[Any], Any]:
    """Settings of a test that usually draws `few` examples."""
    return settings(max_examples=LONG or few, derandomize=not LONG, deadline=None, database=None,
                    suppress_health_check=list(HealthCheck))


def result_or_error(call: Callable[..., Any], *arguments: Any) -> Any:
    """The call's result, or its expected error; any other exception fails the test."""
    try:
        return call(*arguments)
    except InternalError as error:
        raise AssertionError(f"raised an internal error: {error}") from error
    except HarmonizerError as error:
        message = str(error)
        assert message and len(message) < 5000, "a message for users"
        message.encode("utf-8", "surrogateescape")
        return error


@st.composite
def changed(draw: st.DrawFn, content: Any) -> Any:
    """A copy of some JSON in which up to three places were replaced or removed."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(0, 3))):
        holder = content
        while isinstance(holder, (dict, list)) and holder:
            keys = list(holder) if isinstance(holder, dict) else range(len(holder))
            key = draw(st.sampled_from(list(keys)))
            inside = holder[key]
            if isinstance(inside, (dict, list)) and inside and draw(st.booleans()):
                holder = inside
                continue
            if isinstance(holder, dict) and draw(st.integers(0, 3)) == 0:
                del holder[key]
            else:
                holder[key] = draw(JSON)
            break
    return draw(JSON) if draw(st.integers(0, 15)) == 0 else content


NUMBERS_OF_ARRAYS = st.sampled_from((np.nan, np.inf, -np.inf, 0.0, -1.0, 1e-300, 1e300, 3e38, 7.5))
TYPES = ("f8", "f4", "f2", "i8", "i1", "u2", "?")


@st.composite
def changed_arrays(draw: st.DrawFn, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays of which one was renamed, reshaped, retyped, filled, reversed or left out."""
    arrays = dict(arrays)
    for _ in range(draw(st.integers(0, 2))):
        if not arrays:
            break
        name = draw(st.sampled_from(sorted(arrays)))
        array = arrays.pop(name)
        change = draw(st.sampled_from(("drop", "rename", "value", "fill", "shape", "type", "turn")))
        if change == "rename":
            name = draw(st.text(st.characters(codec="utf-8"), max_size=8))
        elif change == "value" and array.size:
            array = array.astype("f8")
            array.flat[draw(st.integers(0, array.size - 1))] = draw(NUMBERS_OF_ARRAYS)
        elif change == "fill":
            array = np.full(array.shape, draw(NUMBERS_OF_ARRAYS))
        elif change == "shape":
            array = np.ones(draw(st.lists(st.integers(0, 4), max_size=4)))
        elif change == "type":
            with np.errstate(all="ignore"):
                array = array.astype(draw(st.sampled_from(TYPES)))
        elif change == "turn":
            array = np.ascontiguousarray(array[::-1]) if array.ndim else array
        if change != "drop":
            arrays[name] = array
    return arrays


@st.composite
def changed_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes cut short, with some of them changed, or others altogether."""
    kind = draw(st.sampled_from(("flip", "flip", "cut", "other")))
    if kind == "other":
        return draw(st.binary(max_size=60))
    if kind == "cut":
        return content[:draw(st.integers(0, len(content)))]
    mutable = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        mutable[draw(st.integers(0, len(mutable) - 1))] = draw(st.integers(0, 255))
    return bytes(mutable)
