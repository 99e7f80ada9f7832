"""A `Target`: what to aim at, and the site card that carries it between hospitals.

A site known from a fit, a set of reference scans, or scanner-free. It holds numbers that describe
a scanner (quantiles, amplitudes, a style vector), never an image, so it can be shared.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np

from ..errors import InputError
from ..files import atomic_path

__all__ = ["Target", "CARD_SUFFIX"]

CARD_SUFFIX = ".safetensors"
CARD_FORMAT = "harmonizer site card 1"


@dataclass(frozen=True, eq=False)
class Target:
    """What a backend aims at.

    Attributes
    ----------
    kind : ``site`` (seen in fit), ``reference`` (enrolled) or ``scanner-free``
    label : site label, or a name for the references
    n_scans : how many scans it was made from
    backend, modality : for what it was made; another backend refuses it
    style : the method's own description of the scanner, arrays by name
    """

    kind: Literal["site", "reference", "scanner-free"]
    label: str
    n_scans: int
    backend: str
    modality: str
    style: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        object.__setattr__(self, "style", MappingProxyType(dict(self.style)))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a site card (safetensors: arrays and a JSON header, no images), atomically."""
        from safetensors.numpy import save_file

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
        """Read a site card; anything else is an `InputError` that says what was expected."""
        from safetensors import safe_open

        try:
            with safe_open(os.fspath(path), framework="numpy") as card:
                facts = json.loads((card.metadata() or {}).get("card", "{}"))
                style = {name: card.get_tensor(name) for name in card.keys()}
            if facts.get("format") != CARD_FORMAT:
                raise ValueError(f"format is {facts.get('format')!r}, not {CARD_FORMAT!r}")
            return cls(facts["kind"], facts["label"], int(facts["n_scans"]), facts["backend"],
                       facts["modality"], style)
        except Exception as error:
            raise InputError(
                f"{path}: is not a site card ({error}). Expected a file that `enroll` wrote."
            ) from error
