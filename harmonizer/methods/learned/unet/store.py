"""Storage of simulated pairs as memory-mapped arrays, and random augmented patches of them."""

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

LEAST_BRAIN = 0.25  # smallest fraction of brain in a patch
SIZES = (0.35, 0.5)  # center and scale of the logarithm of a voxel's side in mm
STD_FLOOR = 0.1  # smallest scale of a conditioning number: smaller differences are noise


@dataclass(frozen=True)
class Pair:
    """One stored pair; see `pairs`.

    Attributes
    ----------
    path : Path
        File of the arrays.
    kind, study : str, int
        Kind and index of the study.
    condition : ndarray, shape (len(CONDITIONS),)
        Conditioning of the network.
    error : float
        Mean square error of the baseline.
    level : ndarray, shape (3,)
        Coefficients of the tissue probabilities in truth - baseline: an offset of each tissue
        that belongs to the subject, which the card of the target does not contain.
    identity : bool
        Whether the scan is of the target scanner.
    """

    path: Path
    kind: str
    study: int
    condition: np.ndarray
    error: float
    level: np.ndarray
    identity: bool

    def open(self) -> np.ndarray:
        """Open the memory-mapped arrays, (7, I, J, K) float16: input channels, then truth."""
        return np.load(self.path, mmap_mode="r", allow_pickle=False)


class PairStore:
    """Pairs of a folder; `refresh` adds studies that were finished in the meantime.

    Attributes
    ----------
    training, validation : list of Pair
        Pairs of training and of validation studies.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.training: list[Pair] = []
        self.validation: list[Pair] = []
        self._seen: set[str] = set()
        self.refresh()

    def refresh(self) -> int:
        """Read new studies; return the number of training pairs."""
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
        """Draw a random patch.

        Returns
        -------
        patch : ndarray, shape (7, size, size, size), float32
            Channels, then truth.
        condition : ndarray
            Conditioning, with the axes of the patch.
        """
        kinds = sorted(self._by_kind)
        p = np.array([weights.get(kind, 1.0) for kind in kinds])
        kind = kinds[int(rng.choice(len(kinds), p=p / p.sum()))]
        pairs = self._by_kind[kind]
        pair = pairs[int(rng.integers(len(pairs)))]
        arrays = pair.open()
        patch = _patch(rng, arrays, size)
        return _turned(rng, patch, pair.condition)


def condition_statistics(pairs: Sequence[Pair]) -> tuple[np.ndarray, np.ndarray]:
    """Return center and scale of the conditioning over pairs; `InputError` without any."""
    if not pairs:
        raise InputError("the store of pairs is empty. Prepare pairs first (unet prepare).")
    values = np.stack([pair.condition for pair in pairs])
    center, scale = values.mean(axis=0), np.maximum(values.std(axis=0), STD_FLOOR)
    for i, name in enumerate(CONDITIONS):
        if name.startswith("voxel_") or name == "template_mm":
            center[i], scale[i] = SIZES  # not those of the studies that were prepared first
    return center, scale


def _pair_of(folder: Path, facts: dict[str, Any], one: dict[str, Any]) -> Pair:
    numbers = np.array(one["condition"], np.float32)
    if len(numbers) != len(CONDITIONS):
        raise InputError(f"{folder}: pairs with {len(numbers)} conditioning numbers, expected "
                         f"{len(CONDITIONS)}. They are of another version; prepare them again.")
    return Pair(folder / one["file"], facts["kind"], facts["index"], numbers, one["error"],
                np.array(one["level"], np.float32), one["identity"])


def _patch(rng: np.random.Generator, arrays: np.ndarray, size: int) -> np.ndarray:
    """Draw (7, size, size, size) float32 with enough brain, zero beyond the stored box."""
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
    """Permute and mirror the axes of a patch, and permute those of the conditioning."""
    order = rng.permutation(3)
    patch = patch.transpose(0, *(1 + order))
    for axis in range(3):
        if rng.random() < 0.5:
            patch = np.flip(patch, 1 + axis)
    return np.ascontiguousarray(patch), condition[_permuted_conditions(order)]


def _permuted_conditions(order: np.ndarray) -> np.ndarray:
    """Return the index that permutes the conditioning like the axes of a volume."""
    index = {name: i for i, name in enumerate(CONDITIONS)}
    new = {a: "RAS"[order[i]] for i, a in enumerate("RAS")}
    return np.array([index[f"{n[:-1]}{new[n[-1]]}"] if n[-2] == "_" and n[-1] in "RAS"
                     else index[n] for n in CONDITIONS])
