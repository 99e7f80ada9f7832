"""From a cohort to slices, slabs and patches: every volume is read and scaled once.

`VolumeStore` keeps all volumes of a fit, scaled to [-1, 1] and cut to the canvas, as memory-mapped
float16 beside their masks, so that a study larger than memory trains. What is drawn in a step is a
pure function of (seed, step, rank): sites first, evenly, then a person of the site, then a scan,
then a place in the brain.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...bounding_box import Canvas
from ...cohort import Cohort, Scan
from ...contrast.intensity import IntensityScale
from ...contrast.local_statistics import stack_probabilities
from ...errors import InputError
from ...files import atomic_path, read_json, write_json
from ...volume import Volume, read_volume, same_grid

__all__ = ["VolumeStore", "SlabDraw", "PatchDraw", "draw_scans", "identity_of"]

BACKGROUND = -1.0
TissuesIn = Callable[[Volume], Mapping[str, np.ndarray]]


class VolumeStore:
    """Scaled volumes on disk.

    Attributes
    ----------
    scans : in the order of the arrays
    canvas : the box around all brains
    grid_shape : of the volumes that the canvas was cut from
    has_tissues : whether shares of the tissues are kept, too
    """

    def __init__(self, folder: Path, cohort: Cohort) -> None:
        facts = read_json(folder / "store.json")
        self.folder, self.scans = folder, cohort.scans
        self.canvas = Canvas(tuple(facts["start"]), tuple(facts["shape"]))
        self.grid_shape = tuple(facts["grid_shape"])
        i, j, k = self.canvas.shape
        stored = (len(self.scans), k, i, j)  # slices lie together on disk
        self._images = np.memmap(folder / "images.f16", np.float16, "r", shape=stored)
        self._masks = np.memmap(folder / "masks.u8", np.uint8, "r", shape=stored)
        self.has_tissues = bool(facts["of"]["tissues"])
        if self.has_tissues:
            self._tissues = np.memmap(folder / "tissues.u8", np.uint8, "r",
                                      shape=(len(self.scans), 3, k, i, j))

    @classmethod
    def build(cls, cohort: Cohort, folder: Path, multiple: tuple[int, int, int] = (1, 1, 1),
              at_least: tuple[int, int, int] = (1, 1, 1),
              tissues_in: TissuesIn | None = None) -> VolumeStore:
        """Read, scale and keep all scans, or open what an earlier call kept of the same files.

        Parameters
        ----------
        multiple, at_least : of the sides of the canvas
        tissues_in : finds the tissues of scans whose tissues are not known; None keeps no tissues

        Raises
        ------
        InputError
            If a scan cannot be read, is constant in its mask, or lies on another grid.
        """
        wanted = {"scans": [identity_of(scan) for scan in cohort], "multiple": list(multiple),
                  "at_least": list(at_least), "tissues": tissues_in is not None}
        path = folder / "store.json"
        if path.exists() and read_json(path).get("of") == json.loads(json.dumps(wanted)):
            return cls(folder, cohort)
        folder.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        union, first = _union_of_masks(cohort)
        canvas = Canvas.around(union, multiple, at_least)
        names = ["images.f16", "masks.u8", *(["tissues.u8"] if tissues_in else [])]
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(open(stack.enter_context(atomic_path(folder / n)), "wb"))
                     for n in names]
            for scan in cohort:
                volume = scan.read()
                parts = [[array] for array in _scaled(scan, volume, canvas)]
                parts.append(_shares(scan, volume, canvas, tissues_in))
                for file, arrays in zip(files, parts):
                    for array in arrays:
                        file.write(np.ascontiguousarray(array.transpose(2, 0, 1)).tobytes())
        write_json(path, {"of": wanted, "start": list(canvas.start), "shape": list(canvas.shape),
                          "grid_shape": list(first.shape)})
        return cls(folder, cohort)

    def image(self, index: int) -> np.ndarray:
        """(I, J, K) float16 view of a scan's canvas, in [-1, 1], background -1."""
        return self._images[index].transpose(1, 2, 0)

    def mask(self, index: int) -> np.ndarray:
        """(I, J, K) uint8 view, 1 in the brain."""
        return self._masks[index].transpose(1, 2, 0)

    def tissues(self, index: int) -> np.ndarray:
        """(3, I, J, K) uint8 view, shares of CSF, GM and WM, 0..255."""
        return self._tissues[index].transpose(0, 2, 3, 1)

    @cached_property
    def areas(self) -> np.ndarray:
        """(n, K) brain voxels in every axial slice."""
        return np.stack([m.reshape(len(m), -1).sum(1, dtype=np.int64) for m in self._masks])

    @cached_property
    def boxes(self) -> np.ndarray:
        """(n, 3, 2) first and last + 1 brain voxel along each axis."""
        boxes = np.zeros((len(self.scans), 3, 2), int)
        for n in range(len(self.scans)):
            for axis in range(3):
                others = tuple(a for a in range(3) if a != axis)
                hits = np.flatnonzero(self.mask(n).any(axis=others))
                boxes[n, axis] = hits[0], hits[-1] + 1
        return boxes


def identity_of(scan: Scan) -> list[Any]:
    """Names the files that a scan is read from; JSON types."""
    stats = [path.stat() for path in (scan.image, scan.mask) if path.exists()]
    return [scan.scan_id, *[value for s in stats for value in (s.st_size, s.st_mtime_ns)]]


def _union_of_masks(cohort: Cohort) -> tuple[np.ndarray, Volume]:
    union, first = None, None
    for scan in cohort:
        volume = read_volume(scan.mask)
        mask = volume.data > 0.5
        if not mask.any():
            raise InputError(f"{scan.image}: the brain mask is empty. Check the brain extraction.")
        if union is None or first is None:
            union, first = mask, volume
        elif not same_grid(first.shape, first.affine, volume.shape, volume.affine):
            raise InputError(f"{scan.image}: lies on another grid than the others. Preprocess all "
                             "scans to one template grid (keep --sloppy the same).")
        else:
            union |= mask
    if union is None or first is None:
        raise InputError("there is no scan to train on.")
    return union, first


def _shares(scan: Scan, volume: Volume, canvas: Canvas, tissues_in: TissuesIn | None
            ) -> list[np.ndarray]:
    """Three uint8 canvases; none where none are wanted."""
    if tissues_in is None:
        return []
    shares = stack_probabilities(scan.read_tissues() or tissues_in(volume), volume) * volume.mask
    return [canvas.take(np.rint(255 * np.clip(share, 0, 1)).astype(np.uint8)) for share in shares]


def _scaled(scan: Scan, volume: Volume, canvas: Canvas) -> tuple[np.ndarray, np.ndarray]:
    values = volume.in_mask()
    if values.min() == values.max():
        raise InputError(f"{scan.image}: is constant in the brain mask. Check image and mask.")
    unit = np.clip(IntensityScale.of(values).to_unit(volume.data), -1, 1)
    unit = np.where(volume.mask, unit, BACKGROUND).astype(np.float16)
    assert volume.mask is not None
    return canvas.take(unit, BACKGROUND), canvas.take(volume.mask.astype(np.uint8))


def draw_scans(rng: np.random.Generator, scans: Sequence[Scan], count: int, *,
               distinct: bool = False) -> list[int]:
    """`count` indices: sites in a random order, each as often as the others, then a person, a scan.

    `distinct`: no person twice, as far as there are people (the count may then be smaller).
    """
    people: dict[str, dict[str, list[int]]] = {}
    for index, scan in enumerate(scans):
        people.setdefault(scan.site, {}).setdefault(scan.subject, []).append(index)
    drawn: list[int] = []
    seen: set[str] = set()
    while len(drawn) < count:
        before = len(drawn)
        for site in rng.permutation(sorted(people)):
            free = sorted(set(people[site]) - (seen if distinct else set()))
            if free and len(drawn) < count:
                person = str(rng.choice(free))
                seen.add(person)
                drawn.append(int(rng.choice(people[site][person])))
        if len(drawn) == before:
            break
    return drawn


@dataclass(frozen=True, eq=False)
class SlabDraw:
    """Axial slices, or slabs of 2 `neighbours` + 1 of them, as channels.

    Attributes
    ----------
    store : the volumes
    scans : indices of those that may be drawn (the people trained on)
    count : scans in a batch
    seed : with step and rank it decides everything
    neighbours : slices on either side
    middle : only slices within so many of the brain's middle; None: all
    least : share of the largest slice's area below which a slice is not drawn
    distinct : no person twice in a batch
    """

    store: VolumeStore
    scans: tuple[int, ...]
    count: int
    seed: int
    neighbours: int = 0
    middle: int | None = None
    least: float = 0.1
    distinct: bool = False

    def __call__(self, step: int, rank: int = 0) -> dict[str, Any]:
        """image, mask (N, 2n + 1, I, J) float32; scan, place: lists; rng: for what comes next."""
        rng = np.random.default_rng([self.seed, step, rank, 1])
        pool = [self.store.scans[i] for i in self.scans]
        drawn = [self.scans[i]
                 for i in draw_scans(rng, pool, self.count, distinct=self.distinct)]
        places = [int(rng.choice(self.slices(index))) for index in drawn]
        slabs = [self.slab(index, place) for index, place in zip(drawn, places)]
        return {"image": torch.from_numpy(np.stack([s[0] for s in slabs])),
                "mask": torch.from_numpy(np.stack([s[1] for s in slabs])),
                "scan": drawn, "place": places, "rng": rng,
                "site": [self.store.scans[i].site for i in drawn]}

    def slices(self, index: int) -> np.ndarray:
        """The slices of a scan that may be drawn."""
        area = self.store.areas[index]
        good = np.flatnonzero(area >= max(1, self.least * area.max()))
        if self.middle is None:
            return good
        centre = (good[0] + good[-1]) // 2
        return good[(good >= centre - self.middle) & (good < centre + self.middle)]

    def slab(self, index: int, place: int) -> tuple[np.ndarray, np.ndarray]:
        """(2n + 1, I, J) image and mask around a slice; beyond the volume its last slice again."""
        around, images, masks = (self._around(place), self.store._images[index],
                                 self.store._masks[index])
        return (np.stack([images[k] for k in around]).astype(np.float32),
                np.stack([masks[k] for k in around]).astype(np.float32))

    def shares(self, index: int, place: int) -> np.ndarray:
        """(3, 2n + 1, I, J) uint8 shares of the tissues in a slab."""
        return self.store._tissues[index][:, self._around(place)]

    def _around(self, place: int) -> np.ndarray:
        last = self.store.canvas.shape[2] - 1
        return np.clip(np.arange(place - self.neighbours, place + self.neighbours + 1), 0, last)


@dataclass(frozen=True, eq=False)
class PatchDraw:
    """3D patches at random places whose centre is in the brain's box.

    Attributes as in `SlabDraw`; `patch` is the side lengths, at most the canvas'.
    """

    store: VolumeStore
    scans: tuple[int, ...]
    count: int
    seed: int
    patch: tuple[int, int, int]
    distinct: bool = False

    def __call__(self, step: int, rank: int = 0) -> dict[str, Any]:
        """image, mask (N, 1, i, j, k) float32; scan, corner: lists; rng: for what comes next."""
        rng = np.random.default_rng([self.seed, step, rank, 2])
        pool = [self.store.scans[i] for i in self.scans]
        drawn = [self.scans[i]
                 for i in draw_scans(rng, pool, self.count, distinct=self.distinct)]
        corners = [self._corner(rng, index) for index in drawn]
        images, masks = [], []
        for index, corner in zip(drawn, corners):
            at = tuple(slice(c, c + p) for c, p in zip(corner, self.patch))
            images.append(self.store.image(index)[at].astype(np.float32))
            masks.append(self.store.mask(index)[at].astype(np.float32))
        return {"image": torch.from_numpy(np.stack(images)[:, None]),
                "mask": torch.from_numpy(np.stack(masks)[:, None]),
                "scan": drawn, "corner": corners, "rng": rng,
                "site": [self.store.scans[i].site for i in drawn]}

    def _corner(self, rng: np.random.Generator, index: int) -> tuple[int, ...]:
        corner = []
        for (low, high), side, n in zip(self.store.boxes[index], self.patch,
                                        self.store.canvas.shape):
            first = int(np.clip(low, 0, n - side))
            last = int(np.clip(high - side, first, n - side))
            corner.append(int(rng.integers(first, last + 1)))
        return tuple(corner)
