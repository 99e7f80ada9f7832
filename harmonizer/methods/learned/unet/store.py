"""Read prepared pairs as memory-mapped patches, and draw augmented batches from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ....errors import InputError
from ....files import read_json
from .channels import CHANNELS, CONDITIONS
from .pairs import VALIDATION_FROM

__all__ = ["Pair", "PairStore", "condition_statistics"]

LEAST_BRAIN = 0.25  # of a patch
SIZES = (0.35, 0.5)  # center and scale of the logarithm of a voxel's side in mm
STD_FLOOR = 0.1  # of a conditioning number: below it, differences are noise


@dataclass(frozen=True)
class Pair:
    """One stored pair, see `pairs`.

    `level` (3,) is what each tissue's probability explains of truth - baseline: the subject's own
    level, which the target's card cannot tell.
    """

    path: Path
    kind: str
    study: int
    condition: np.ndarray
    error: float
    level: np.ndarray
    identity: bool

    def open(self) -> np.ndarray:
        """(7, I, J, K) float16, memory-mapped: the channels of the input, then the truth."""
        return np.load(self.path, mmap_mode="r", allow_pickle=False)


class PairStore:
    """The pairs of a folder; `refresh` picks up studies that were finished since.

    Attributes
    ----------
    training, validation : pairs of training and of validation studies
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.training: list[Pair] = []
        self.validation: list[Pair] = []
        self._seen: set[str] = set()
        self.refresh()

    def refresh(self) -> int:
        """Read studies that are new; the number of training pairs."""
        for path in sorted(self.folder.glob("study_*.json")):
            if path.name not in self._seen:
                self._seen.add(path.name)
                facts = read_json(path)
                where = self.validation if facts["index"] >= VALIDATION_FROM else self.training
                where += [_pair_of(self.folder, facts, one) for one in facts["pairs"]]
        self._by_kind = {kind: [p for p in self.training if p.kind == kind]
                         for kind in {p.kind for p in self.training}}
        return len(self.training)

    def draw(self, rng: np.random.Generator, size: int, weights: dict[str, float]
             ) -> tuple[np.ndarray, np.ndarray]:
        """A random patch, (7, size, size, size) float32: channels, then truth; its conditioning."""
        kinds = sorted(self._by_kind)
        p = np.array([weights.get(kind, 1.0) for kind in kinds])
        kind = kinds[int(rng.choice(len(kinds), p=p / p.sum()))]
        pairs = self._by_kind[kind]
        pair = pairs[int(rng.integers(len(pairs)))]
        arrays = pair.open()
        patch = _patch(rng, arrays, size)
        return _turned(rng, patch, pair.condition)


def condition_statistics(pairs: Sequence[Pair]) -> tuple[np.ndarray, np.ndarray]:
    """(center, scale) of the conditioning over pairs; `InputError` without any."""
    if not pairs:
        raise InputError("the store of pairs is empty. Prepare pairs first (unet prepare).")
    values = np.stack([pair.condition for pair in pairs])
    center, scale = values.mean(axis=0), np.maximum(values.std(axis=0), STD_FLOOR)
    for i, name in enumerate(CONDITIONS):
        if name.startswith("voxel_") or name == "template_mm":
            center[i], scale[i] = SIZES  # whatever sizes happen to be prepared first
    return center, scale


def _pair_of(folder: Path, facts: dict[str, Any], one: dict[str, Any]) -> Pair:
    numbers = np.array(one["condition"], np.float32)
    if len(numbers) != len(CONDITIONS):
        raise InputError(f"{folder}: pairs with {len(numbers)} conditioning numbers, expected "
                         f"{len(CONDITIONS)}. They are of another version; prepare them again.")
    return Pair(folder / one["file"], facts["kind"], facts["index"], numbers, one["error"],
                np.array(one["level"], np.float32), one["identity"])


def _patch(rng: np.random.Generator, arrays: np.ndarray, size: int) -> np.ndarray:
    """(7, size, size, size) float32 with enough brain, zero beyond the stored box."""
    mask = CHANNELS.index("mask")
    for _ in range(6):
        box = []
        for n in arrays.shape[1:]:
            low = int(rng.integers(0, max(n - size, 0) + 1))
            box.append(slice(low, min(low + size, n)))
        patch = arrays[(slice(None), *box)]
        if float(patch[mask].mean(dtype=np.float32)) >= LEAST_BRAIN:
            break
    out = np.zeros((len(arrays), size, size, size), np.float32)
    out[(slice(None), *(slice(0, n) for n in patch.shape[1:]))] = patch
    return out


def _turned(rng: np.random.Generator, patch: np.ndarray, condition: np.ndarray
            ) -> tuple[np.ndarray, np.ndarray]:
    """The patch with its axes permuted and mirrored, and the conditioning with its axes permuted.
    """
    order = rng.permutation(3)
    patch = patch.transpose(0, *(1 + order))
    for axis in range(3):
        if rng.random() < 0.5:
            patch = np.flip(patch, 1 + axis)
    return np.ascontiguousarray(patch), condition[_permuted_conditions(order)]


def _permuted_conditions(order: np.ndarray) -> np.ndarray:
    """Index by which the conditioning of a volume with permuted axes is read."""
    index = {name: i for i, name in enumerate(CONDITIONS)}
    new = {a: "RAS"[order[i]] for i, a in enumerate("RAS")}
    return np.array([index[f"{n[:-1]}{new[n[-1]]}"] if n[-2] == "_" and n[-1] in "RAS"
                     else index[n] for n in CONDITIONS])
