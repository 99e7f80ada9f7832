"""Training data: volumes scaled once into memory-mapped arrays, and samplers of slabs and patches.

The batch of a step depends only on (seed, step, rank). Sites are drawn evenly,
then a subject of the site, then a scan, then a position in the brain.
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

from ...bounding_box import BoundingBox
from ...cohort import Cohort, Scan
from ...contrast.intensity import IntensityScale
from ...contrast.local_statistics import stack_probabilities
from ...errors import InputError
from ...files import atomic_path, read_json, write_json
from ...tissues import TISSUES
from ...volume import Volume, read_volume, same_grid
from ..patches import patch_slices, random_corner

__all__ = ["BACKGROUND", "VolumeStore", "SlabSampler", "PatchSampler", "sample_scans",
           "scan_identity"]

BACKGROUND = -1.0  # intensity outside the brain, in the unit of the networks
MAX_PROBABILITY = 255  # of the stored tissue probabilities, uint8
MIN_AREA_FRACTION = 0.1  # of the largest slice's brain area, below which a slice is not drawn

Segment = Callable[[Volume], Mapping[str, np.ndarray]]


class VolumeStore:
    """Scaled volumes of a cohort on disk, so that a study larger than memory can be trained on.

    Images are float16 in [-1, 1], cropped to the box around all brains.

    Parameters
    ----------
    folder : Path
        Written by `build`.
    cohort : Cohort
        The scans of the store.

    Attributes
    ----------
    scans : tuple of Scan
        In the order of the arrays.
    box : BoundingBox
        The box around all brains.
    grid_shape : tuple of int
        Shape of the volumes that the box was cropped from.
    has_tissues : bool
        Whether tissue probabilities are stored.
    """

    def __init__(self, folder: Path, cohort: Cohort) -> None:
        facts = read_json(folder / "store.json")
        self.folder, self.scans = folder, cohort.scans
        self.box = BoundingBox(tuple(facts["start"]), tuple(facts["shape"]))
        self.grid_shape = tuple(facts["grid_shape"])
        i, j, k = self.box.shape
        stored = (len(self.scans), k, i, j)  # slices are contiguous on disk
        self._images = np.memmap(folder / "images.f16", np.float16, "r", shape=stored)
        self._masks = np.memmap(folder / "masks.u8", np.uint8, "r", shape=stored)
        self.has_tissues = bool(facts["of"]["tissues"])
        if self.has_tissues:
            self._tissues = np.memmap(folder / "tissues.u8", np.uint8, "r",
                                      shape=(len(self.scans), len(TISSUES), k, i, j))

    @classmethod
    def build(cls, cohort: Cohort, folder: Path, multiple: tuple[int, int, int] = (1, 1, 1),
              segment: Segment | None = None) -> VolumeStore:
        """Read, scale and store all scans, or open the store of the same files.

        Parameters
        ----------
        multiple : tuple of int
            Sides of the box are multiples of these.
        segment : callable, optional
            Volume -> tissue probabilities, for scans whose tissues are not known. Default: no
            tissues are stored.

        Raises
        ------
        InputError
            If a scan cannot be read, is constant in its mask, or lies on another grid.
        """
        wanted = {"scans": [scan_identity(scan) for scan in cohort], "multiple": list(multiple),
                  "tissues": segment is not None}
        path = folder / "store.json"
        if path.exists() and read_json(path).get("of") == json.loads(json.dumps(wanted)):
            return cls(folder, cohort)
        folder.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        union, first = _union_of_masks(cohort)
        box = BoundingBox.around(union, multiple)
        names = ["images.f16", "masks.u8", *(["tissues.u8"] if segment else [])]
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(open(stack.enter_context(atomic_path(folder / n)), "wb"))
                     for n in names]
            for scan in cohort:
                volume = scan.read()
                parts = [[array] for array in _scaled(scan, volume, box)]
                parts.append(_tissues(scan, volume, box, segment))
                for file, arrays in zip(files, parts):
                    for array in arrays:
                        file.write(np.ascontiguousarray(array.transpose(2, 0, 1)).tobytes())
        write_json(path, {"of": wanted, "start": list(box.start), "shape": list(box.shape),
                          "grid_shape": list(first.shape)})
        return cls(folder, cohort)

    def image(self, index: int) -> np.ndarray:
        """Return a view of a scan, shape (I, J, K), float16 in [-1, 1], background -1."""
        return self._images[index].transpose(1, 2, 0)

    def mask(self, index: int) -> np.ndarray:
        """Return a view of a brain mask, shape (I, J, K), uint8, 1 in the brain."""
        return self._masks[index].transpose(1, 2, 0)

    def slab(self, index: int, place: int, neighbors: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Return a slice with its neighbors along the third axis.

        Parameters
        ----------
        index : int
            Scan.
        place : int
            Middle slice. Beyond the volume the last slice is repeated.
        neighbors : int
            Slices on either side.

        Returns
        -------
        image, mask : ndarray, shape (2 neighbors + 1, I, J), float32
        """
        at = self._slab_slices(place, neighbors)
        return (np.stack([self._images[index][k] for k in at]).astype(np.float32),
                np.stack([self._masks[index][k] for k in at]).astype(np.float32))

    def slab_tissues(self, index: int, place: int, neighbors: int = 0) -> np.ndarray:
        """Return the tissue probabilities of a slab, (3, 2 neighbors + 1, I, J), uint8, 0..255."""
        return self._tissues[index][:, self._slab_slices(place, neighbors)]

    def patch(self, index: int, corner: Sequence[int], sides: Sequence[int]
              ) -> tuple[np.ndarray, np.ndarray]:
        """Return image and mask of a patch, shape (i, j, k), float32, contiguous."""
        at = patch_slices(corner, sides)
        return (np.ascontiguousarray(self.image(index)[at], np.float32),
                np.ascontiguousarray(self.mask(index)[at], np.float32))

    def patch_tissues(self, index: int, corner: Sequence[int], sides: Sequence[int]
                      ) -> np.ndarray:
        """Return the tissue probabilities of a patch, shape (3, i, j, k), float32, 0..1."""
        tissues = self._tissues[index].transpose(0, 2, 3, 1)
        return tissues[(slice(None), *patch_slices(corner, sides))] / np.float32(MAX_PROBABILITY)

    def slices(self, index: int) -> np.ndarray:
        """Return the indices of axial slices whose brain area is not small."""
        area = self.areas[index]
        return np.flatnonzero(area >= max(1, MIN_AREA_FRACTION * area.max()))

    @cached_property
    def areas(self) -> np.ndarray:
        """Brain voxels of every axial slice, shape (n, K)."""
        return np.stack([m.reshape(len(m), -1).sum(1, dtype=np.int64) for m in self._masks])

    @cached_property
    def brain_extents(self) -> np.ndarray:
        """First and last + 1 brain voxel along each axis, shape (n, 3, 2)."""
        extents = np.zeros((len(self.scans), 3, 2), int)
        for n in range(len(self.scans)):
            for axis in range(3):
                others = tuple(a for a in range(3) if a != axis)
                hits = np.flatnonzero(self.mask(n).any(axis=others))
                extents[n, axis] = hits[0], hits[-1] + 1
        return extents

    def _slab_slices(self, place: int, neighbors: int) -> np.ndarray:
        last = self.box.shape[2] - 1
        return np.clip(np.arange(place - neighbors, place + neighbors + 1), 0, last)


def scan_identity(scan: Scan) -> list[Any]:
    """Identify the files of a scan by size and modification time; JSON types."""
    stats = [path.stat() for path in (scan.image, scan.mask) if path.exists()]
    return [scan.scan_id, *[value for s in stats for value in (s.st_size, s.st_mtime_ns)]]


def _union_of_masks(cohort: Cohort) -> tuple[np.ndarray, Volume]:
    """Return the union of all brain masks, and the first of them."""
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
        raise InputError("expected at least one scan to train on, got none.")
    return union, first


def _tissues(scan: Scan, volume: Volume, box: BoundingBox, segment: Segment | None
             ) -> list[np.ndarray]:
    """Return three cropped uint8 probabilities; an empty list where none are wanted."""
    if segment is None:
        return []
    tissues = stack_probabilities(scan.read_tissues() or segment(volume), volume) * volume.mask
    return [box.crop(np.rint(MAX_PROBABILITY * np.clip(p, 0, 1)).astype(np.uint8))
            for p in tissues]


def _scaled(scan: Scan, volume: Volume, box: BoundingBox) -> tuple[np.ndarray, np.ndarray]:
    """Return the cropped image in [-1, 1] and the cropped mask."""
    values = volume.in_mask()
    if values.min() == values.max():
        raise InputError(f"{scan.image}: is constant in the brain mask. Check image and mask.")
    unit = np.clip(IntensityScale.of(values).to_unit(volume.data), -1, 1)
    unit = np.where(volume.require_mask(), unit, BACKGROUND).astype(np.float16)
    assert volume.mask is not None
    return box.crop(unit, BACKGROUND), box.crop(volume.mask.astype(np.uint8))


def sample_scans(rng: np.random.Generator, scans: Sequence[Scan], count: int, *,
                 distinct: bool = False, per_site: int = 1) -> list[int]:
    """Draw indices of scans, balanced over sites.

    Sites come in random order, each as often as the others; then a subject, then a scan.

    Parameters
    ----------
    count : int
        Number of indices.
    distinct : bool
        Draw no subject twice; fewer indices are returned if there are too few subjects.
    per_site : int
        Number of scans that are drawn from a site before the next site follows.
    """
    by_subject: dict[str, dict[str, list[int]]] = {}
    for index, scan in enumerate(scans):
        by_subject.setdefault(scan.site, {}).setdefault(scan.subject, []).append(index)
    drawn: list[int] = []
    used: set[str] = set()
    while len(drawn) < count:
        before = len(drawn)
        for site in np.repeat(rng.permutation(sorted(by_subject)), per_site):
            free = sorted(set(by_subject[site]) - (used if distinct else set()))
            if free and len(drawn) < count:
                subject = str(rng.choice(free))
                used.add(subject)
                drawn.append(int(rng.choice(by_subject[site][subject])))
        if len(drawn) == before:
            break
    return drawn


@dataclass(frozen=True, eq=False)
class SlabSampler:
    """Sampler of axial slices, or of slabs of neighboring slices as channels.

    Attributes
    ----------
    store : VolumeStore
        Volumes.
    scans : tuple of int
        Indices of the scans that may be drawn.
    count : int
        Scans in a batch.
    seed : int
        With step and rank it determines the batch.
    neighbors : int
        Slices on either side.
    max_offset : int, optional
        Draw only slices within so many of the brain's middle. Default: all.
    distinct : bool
        Draw no subject twice in a batch.
    per_site : int
        See `sample_scans`.
    """

    store: VolumeStore
    scans: tuple[int, ...]
    count: int
    seed: int
    neighbors: int = 0
    max_offset: int | None = None
    distinct: bool = False
    per_site: int = 1

    def __call__(self, step: int, rank: int = 0) -> dict[str, Any]:
        """Draw a batch.

        Returns
        -------
        dict
            ``image``, ``mask``: (N, 2 neighbors + 1, I, J) float32 tensors; ``scan``, ``place``,
            ``site``: lists; ``rng``: generator for further draws of the step.
        """
        rng = np.random.default_rng([self.seed, step, rank, 1])
        pool = [self.store.scans[i] for i in self.scans]
        drawn = [self.scans[i]
                 for i in sample_scans(rng, pool, self.count, distinct=self.distinct,
                                       per_site=self.per_site)]
        places = [int(rng.choice(self.slices(index))) for index in drawn]
        slabs = [self.store.slab(index, place, self.neighbors)
                 for index, place in zip(drawn, places)]
        return {"image": torch.from_numpy(np.stack([s[0] for s in slabs])),
                "mask": torch.from_numpy(np.stack([s[1] for s in slabs])),
                "scan": drawn, "place": places, "rng": rng,
                "site": [self.store.scans[i].site for i in drawn]}

    def slices(self, index: int) -> np.ndarray:
        """Return the slices of a scan that may be drawn."""
        good = self.store.slices(index)
        if self.max_offset is None:
            return good
        center = (good[0] + good[-1]) // 2
        return good[(good >= center - self.max_offset) & (good < center + self.max_offset)]


@dataclass(frozen=True, eq=False)
class PatchSampler:
    """Sampler of 3D patches at random positions within the brain's extent.

    Attributes
    ----------
    store, scans, count, seed
        As in `SlabSampler`.
    patch : tuple of int
        Sides in voxels, at most those of the store's box.
    """

    store: VolumeStore
    scans: tuple[int, ...]
    count: int
    seed: int
    patch: tuple[int, ...]

    def __call__(self, step: int, rank: int = 0) -> dict[str, Any]:
        """Draw a batch.

        Returns
        -------
        dict
            ``image``, ``mask``: (N, 1, i, j, k) float32 tensors; ``scan``, ``corner``, ``site``:
            lists; ``rng``: generator for further draws of the step.
        """
        rng = np.random.default_rng([self.seed, step, rank, 2])
        pool = [self.store.scans[i] for i in self.scans]
        drawn = [self.scans[i] for i in sample_scans(rng, pool, self.count)]
        corners = [random_corner(rng, self.store.brain_extents[index], self.patch,
                                 self.store.box.shape) for index in drawn]
        patches = [self.store.patch(index, corner, self.patch)
                   for index, corner in zip(drawn, corners)]
        return {"image": torch.from_numpy(np.stack([p[0] for p in patches])[:, None]),
                "mask": torch.from_numpy(np.stack([p[1] for p in patches])[:, None]),
                "scan": drawn, "corner": corners, "rng": rng,
                "site": [self.store.scans[i].site for i in drawn]}
