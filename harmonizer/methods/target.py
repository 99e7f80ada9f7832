"""Targets of harmonization, and site cards: files that carry a target between hospitals.

A target is a site of the fit, a set of reference scans, or scanner-free. It holds numbers that
describe a scanner (quantiles, amplitudes, a style vector), never an image, so it can be shared.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from ..errors import InputError
from ..files import atomic_path

__all__ = ["Target", "CARD_SUFFIX", "check_arrays"]

CARD_SUFFIX = ".safetensors"
CARD_FORMAT = "harmonizer site card 1"
MAX_CARD_BYTES = 256 << 20  # numbers about a scanner; ours have kilobytes
LABEL = r"[0-9A-Za-z_+][0-9A-Za-z _.+-]{0,119}"  # goes into a file name: no slash, no dot in front
Kind = Literal["site", "reference", "scanner-free"]


@dataclass(frozen=True, eq=False)
class Target:
    """Target of a backend.

    Attributes
    ----------
    kind : {"site", "reference", "scanner-free"}
        Site of the fit, enrolled scans, or no scanner.
    label : str
        Site label, or a name for the references.
    n_scans : int
        Number of scans that it was made from.
    backend, modality : str
        Method and BIDS suffix that it was made for; another backend refuses it.
    style : mapping of str to ndarray
        The method's own description of the scanner.
    """

    kind: Kind
    label: str
    n_scans: int
    backend: str
    modality: str
    style: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        object.__setattr__(self, "style", MappingProxyType(dict(self.style)))

    def check(self) -> None:
        """Check the fields and arrays; a site card may be of unknown origin.

        Raises
        ------
        ValueError
            If the kind is unknown, a label cannot be part of a file name, the count is negative, or
            an array holds anything but finite numbers.
        """
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind is {self.kind!r}, not one of {', '.join(get_args(Kind))}")
        for name in ("label", "backend", "modality"):
            value = getattr(self, name)
            if not isinstance(value, str) or not re.fullmatch(LABEL, value):
                raise ValueError(f"{name} {value!r:.80} is not made of 1 to 120 letters, digits, "
                                 "spaces and . _ + -")
        if self.n_scans < 0:
            raise ValueError(f"n_scans is {self.n_scans}, expected 0 or more")
        check_arrays(self.style)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a site card (safetensors: arrays and a JSON header, no images), atomically.

        Raises
        ------
        InputError
            If `load` would refuse it.
        """
        try:
            self.check()
        except ValueError as error:
            raise InputError(f"target {self.label!r:.80} cannot be saved: {error}.") from error
        facts = {
            "format": CARD_FORMAT, "kind": self.kind, "label": self.label,
            "n_scans": str(self.n_scans), "backend": self.backend, "modality": self.modality,
        }
        arrays = {name: np.ascontiguousarray(value) for name, value in sorted(self.style.items())}
        with atomic_path(path) as temporary:
            save_file(arrays, temporary, metadata={"card": json.dumps(facts, sort_keys=True)})
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Target:
        """Read a site card.

        Raises
        ------
        InputError
            If the file is not a valid site card.
        """
        try:
            if os.path.getsize(path) > MAX_CARD_BYTES:
                raise ValueError(f"larger than {MAX_CARD_BYTES >> 20} MiB")
            with safe_open(os.fspath(path), framework="numpy") as card:
                facts = json.loads((card.metadata() or {}).get("card", "{}"))
                style = {name: card.get_tensor(name) for name in card.keys()}  # noqa: SIM118
            if facts.get("format") != CARD_FORMAT:
                raise ValueError(f"format is {facts.get('format')!r:.80}, not {CARD_FORMAT!r}")
            target = cls(facts["kind"], facts["label"], int(facts["n_scans"]), facts["backend"],
                         facts["modality"], style)
            target.check()
            return target
        except Exception as error:  # safetensors and json raise their own types
            raise InputError(
                f"{path}: is not a site card ({error}). Expected a file that `enroll` wrote."
            ) from error


def check_arrays(arrays: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError if an array holds anything but finite real numbers; it names the array."""
    for name, array in arrays.items():
        if array.dtype.kind not in "iufb":
            raise ValueError(f"array {name!r:.80} is {array.dtype}, not real numbers")
        if not np.isfinite(array).all():
            raise ValueError(f"array {name!r:.80} holds NaN or infinity")
