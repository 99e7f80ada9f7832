"""Fields of `Settings`: allowed values, and functions that parse and check one value.

`option` declares a field. Its parser converts what the command line or a TOML file gives; a value
of the wrong type, or outside the choices or the range of the field, is a `UsageError`.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from harmonizer.errors import UsageError, did_you_mean

__all__ = [
    "option", "parse_option", "flag_of", "as_text", "as_texts", "as_path", "as_paths", "as_number",
    "as_integer", "as_boolean", "as_participants", "as_labels", "as_columns", "as_targets",
    "available_cpus", "parse_memory", "stages_of", "target_kind_of",
]

STAGES = ("preprocess", "fit", "harmonize", "evaluate", "export")  # in the order of execution
LEVEL_STAGES = {  # `group` after one `participant` job per subject has to finish the work
    "participant": ("preprocess", "harmonize"),
    "group": ("fit", "harmonize", "evaluate", "export"),  # export: only with --export
}
LEVELS = tuple(LEVEL_STAGES)
MODALITIES = ("T1w", "T2w", "FLAIR", "PDw")
SITE_SOURCES = ("auto", "participants", "sessions", "ses", "sidecar")
SKULL_STRIP = ("auto", "force", "skip", "network")
TRAVELING = ("auto", "no")
ANATOMY_CHANGE_MAPS = ("none", "flagged", "all")
PRECISION = ("auto", "bf16", "fp32")
DETAIL = ("direct", "guided")
TEXTURE = ("match", "keep")
PRESETS = ("tiny", "small", "paper")
EXPORTS = ("raw",)
EXPORT_NAMES = ("rec", "original")
SCANNER_FREE = "scanner-free"
IMAGE_SUFFIXES = (".nii", ".nii.gz")
CARD_SUFFIX = ".safetensors"
MEMORY_RANGE_GB = (0.5, 2000.0)  # outside it, another unit was meant
MIN_BARE_MB = 1000.0  # no machine has 1000 GB by accident; fMRIPrep and QSIPrep count in MB
UNITS_GB = {"K": 1e-6, "M": 1e-3, "G": 1.0, "T": 1e3}
FLAGS = {"levels": "analysis level", "verbose": "-v"}  # of the others: the name with hyphens

Parser = Callable[[Any], Any]


def option(
    parse: Parser, default: Any = dataclasses.MISSING, *, choices: tuple[str, ...] = (),
    low: int | None = None, high: int | None = None, **more: Any,
) -> Any:
    """Declare a field of `Settings`; a field whose default is None also accepts None.

    Parameters
    ----------
    parse : callable
        Converts a value; raises `TypeError` with the expected type in words.
    default
        Default value; a required option has none.
    choices : tuple of str
        Allowed values, of each item if the option takes several; empty allows all.
    low, high : int, optional
        Allowed range of an integer, both included.
    **more
        Passed to `dataclasses.field`.
    """
    metadata = {"parse": parse, "choices": choices, "range": (low, high),
                "optional": default is None}
    return dataclasses.field(metadata=metadata, **{"default": default, **more}
                             if "default_factory" not in more else more)


def parse_option(field: dataclasses.Field[Any], value: Any) -> Any:
    """Convert and check the value of one field.

    Raises
    ------
    UsageError
        If the value has the wrong type, is not among the choices, or is out of range.
    """
    rules = field.metadata
    if value is None and rules["optional"]:
        return None
    try:
        value = rules["parse"](value)
    except TypeError as error:
        raise UsageError(f"{field.name}: expected {error}, got {value!r}.") from error
    for word in (value,) if isinstance(value, str) else value if rules["choices"] else ():
        if rules["choices"] and word not in rules["choices"]:
            raise UsageError(f"{flag_of(field.name)}: {word!r} is not known. "
                             f"{did_you_mean(word, rules['choices'])}")
    low, high = rules["range"]
    if low is not None and not low <= value <= high:
        raise UsageError(f"{flag_of(field.name)} {value}: expected a whole number from {low} to "
                         f"{high}.")
    return value


def flag_of(name: str) -> str:
    """Return the flag of an option as the user types it.

    >>> flag_of("site_from")
    '--site-from'
    """
    return FLAGS.get(name, f"--{name.replace('_', '-')}")


def as_text(value: Any) -> str:
    """Accept text or a path that is not empty."""
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise TypeError("text")
    return os.fspath(value)


def as_texts(value: Any) -> tuple[str, ...]:
    """Accept a list of texts; repetitions are dropped."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError("a list of texts")
    return tuple(dict.fromkeys(as_text(item) for item in value))


def as_path(value: Any) -> Path:
    """Return the absolute path; ``~`` is the home folder."""
    return Path(os.path.abspath(os.path.expanduser(as_text(value))))


def as_paths(value: Any) -> dict[str, Path]:
    """Accept a table of names and folders."""
    if not isinstance(value, Mapping):
        raise TypeError("a table of names and folders")
    return {str(name): as_path(path) for name, path in value.items()}


def as_number(value: Any) -> float:
    """Accept an integer or a float."""
    if type(value) not in (int, float):  # not isinstance: a bool is an int there
        raise TypeError("a number")
    return float(value)


def as_integer(value: Any) -> int:
    """Accept an integer."""
    if type(value) is not int:
        raise TypeError("a whole number")
    return int(value)


def as_boolean(value: Any) -> bool:
    """Accept True or False."""
    if type(value) is not bool:
        raise TypeError("true or false")
    return bool(value)


def as_labels(prefix: str) -> Parser:
    """Return a parser of BIDS labels: splits at spaces and commas, drops prefix and repetitions."""

    def parse(value: Any) -> tuple[str, ...]:
        words = (word for entry in as_texts(value) for word in re.split(r"[\s,]+", entry) if word)
        return tuple(dict.fromkeys(word.removeprefix(prefix) for word in words))

    return parse


def as_columns(value: Any) -> tuple[str, ...]:
    """Accept column names; splits at commas, drops repetitions.

    >>> as_columns(["age,sex", "group"])
    ('age', 'sex', 'group')
    """
    words = (word.strip() for entry in as_texts(value) for word in entry.split(","))
    return tuple(dict.fromkeys(word for word in words if word))


def as_participants(value: Any) -> tuple[str, ...]:
    """Accept participant labels and ``column=value`` conditions."""
    return tuple(dict.fromkeys(entry.removeprefix("sub-") for entry in as_texts(value)))


def as_targets(value: Any) -> tuple[str, ...]:
    """Accept targets; paths of images and site cards become absolute."""
    return tuple(str(as_path(entry)) if target_kind_of(entry) in ("images", "card") else entry
                 for entry in as_texts(value))


def target_kind_of(entry: str) -> str:
    """Return the kind of one target: 'site', 'images', 'card' or 'scanner-free'.

    Raises
    ------
    UsageError
        If it looks like a path and is neither an image nor a site card.
    """
    if entry == SCANNER_FREE:
        return "scanner-free"
    if entry.lower().endswith(IMAGE_SUFFIXES):
        return "images"
    if entry.endswith(CARD_SUFFIX):
        return "card"
    if "/" in entry:
        raise UsageError(
            f"--target {entry}: looks like a path, but is neither an image (.nii, .nii.gz) nor a "
            f"site card ({CARD_SUFFIX}). A site label has no slash."
        )
    return "site"


def stages_of(levels: Iterable[str]) -> tuple[str, ...]:
    """Return the stages of some analysis levels, in the order of execution."""
    requested = {stage for level in levels for stage in LEVEL_STAGES[level]}
    return tuple(stage for stage in STAGES if stage in requested)


def available_cpus() -> int:
    """Return the number of CPUs that this process may use, as limited by a scheduler."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def parse_memory(text: str, default_unit: str = "") -> float:
    """Return gigabytes (1e9 bytes) of text such as '16', '16G', '16GB', '16000M'; decimal units.

    Without a unit and a `default_unit`, numbers below 1000 are GB and larger ones are MB.

    >>> parse_memory("16000M"), parse_memory("16"), parse_memory("16000")
    (16.0, 16.0, 16.0)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)B?\s*", text, re.IGNORECASE)
    if match is None:
        raise UsageError(f"memory {text!r}: expected a number and K, M, G or T, such as 16G.")
    number, unit = match.groups()
    by_size = "M" if float(number) >= MIN_BARE_MB else "G"
    return float(number) * UNITS_GB[unit.upper() or default_unit or by_size]
