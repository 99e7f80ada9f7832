"""Simulation of training pairs for the residual U-Net, stored on disk before the training.

A *study* is a small simulated multi-site cohort: random scanners, and a few anatomies at each.
Tissue matching is fitted on it, with the tissue probabilities of the shipped segmenters. Every scan
is then harmonized to every other scanner, which gives a pair of

* input: the scan, the result of tissue matching (the baseline), the tissue probabilities, and the
  cards of scan and target;
* truth: the same anatomy rendered by the target scanner, without noise and without bias field.

Because the truth has no noise, the network cannot learn to add noise. Scans of the target scanner
give identity pairs, whose truth is the scan itself.

A study depends only on the seed and its index. Preparation can therefore be stopped, resumed and
distributed over processes. The JSON file of a study is written last.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from ....cohort import Cohort
from ....contrast.local_statistics import LocalStatistics
from ....contrast.tissue_map import TissueMap
from ....files import atomic_path, write_json
from ....preprocessing.transforms import resample
from ....segmentation import structures as st
from ....simulation.anatomy import Anatomy, label_map_anatomy, phantom_anatomy
from ....simulation.imaging import ScanGrid, acquire, render, sample, scan_grid, template_scan_grid
from ....simulation.scanners import SimulatedScanner, draw_scanner
from ....template import load_template
from ....volume import Volume
from ...base import ScanContext
from ...statistical.tissue_matching import TissueMatching
from .channels import condition, levels_of, map_numbers, stack_channels
from .scan_card import scan_card

__all__ = ["KINDS", "StudyKind", "prepare_study", "VALIDATION_FROM"]

LOG = logging.getLogger("harmonizer")
VALIDATION_FROM = 100_000  # index from which studies are for validation, with other anatomies
HELD_OUT_MAPS = 3  # last label maps of the folder, which only validation studies use
IDENTITY = 0.25  # fraction of scans that also give an identity pair
PHANTOM_SEEDS = (50_000_000, 60_000_000)  # first seed for training and for validation


@dataclass(frozen=True)
class StudyKind:
    """How a study's scans and pairs are made.

    Attributes
    ----------
    anatomy_mm : grid of the anatomies
    template_mm : grid on which tissues are segmented and tissue matching is fitted
    direct : whether scans are made on the template's grid, as if preprocessed already; their noise
        is then partly averaged, as that of smaller voxels is
    native : whether pairs lie on the scans' own grids; otherwise on the template's
    scanners, subjects : number of scanners, and bounds of the number of subjects at each
    targets : number of other scanners that each scan is brought to. Many scanners with few pairs
        each are worth more than the reverse: a network can memorize few scanners
    crop : largest side of a stored pair, voxels
    """

    anatomy_mm: float
    template_mm: int
    direct: bool
    native: bool
    scanners: int
    subjects: tuple[int, int]
    targets: int
    crop: int


KINDS = {
    "coarse": StudyKind(2.0, 2, True, False, 8, (2, 2), 3, 96),
    "mixed": StudyKind(1.0, 2, False, True, 6, (1, 2), 3, 96),
    "fine": StudyKind(1.0, 1, True, False, 6, (1, 2), 3, 96),
    "fine_native": StudyKind(1.0, 1, False, True, 6, (1, 2), 3, 96),
}


@dataclass(frozen=True, eq=False)
class SimulatedScan:
    """Simulated scan in memory, with the interface of `cohort.Scan`."""

    scan_id: str
    site: str
    anatomy: Anatomy
    grid: ScanGrid
    native: Volume
    template: Volume
    probabilities: np.ndarray
    session: str | None = None
    modality: str = "T1w"
    site_source: str = "simulated"
    age: float | None = None
    sex: str | None = None
    image: Path = Path("simulated")
    mask: Path = Path("simulated")

    @property
    def subject(self) -> str:
        """Each scan is of a different subject."""
        return self.scan_id

    @property
    def covariates(self) -> dict[str, str]:
        """No covariates are simulated."""
        return {}

    def read(self) -> Volume:
        """Return the image on the template grid."""
        return self.template

    def read_tissues(self) -> dict[str, np.ndarray]:
        """Return the tissue probabilities of the shipped segmenter."""
        return dict(zip(("CSF", "GM", "WM"), self.probabilities))


def prepare_study(folder: Path, maps: Path, map_count: int, kind: str, seed: int, index: int
                  ) -> Path:
    """Simulate one study and write its pairs, unless this was done; return its JSON file."""
    path = folder / f"study_{index:06d}.json"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    how = KINDS[kind]
    rng = np.random.default_rng([seed, index])
    scanners = [draw_scanner(rng, len(st.STRUCTURES)) for _ in range(how.scanners)]
    scans = _scans(rng, scanners, maps, map_count, how, index, folder / "maps")
    method = _fitted(scans)
    cards = [scan_card(scan.template, scan.probabilities) for scan in scans]
    site_cards = {site: np.mean([c for c, s in zip(cards, scans) if s.site == site], axis=0)
                  for site in {s.site for s in scans}}
    pairs: list[dict[str, Any]] = []
    for scan, card in zip(scans, cards):
        for number in _targets(rng, scan, how):
            pair = _pair(rng, method, scan, card, number, scanners[number],
                         site_cards[f"s{number}"], how)
            name = f"study_{index:06d}_{len(pairs):03d}.npy"
            with atomic_path(folder / name) as temporary, open(temporary, "wb") as file:
                np.save(file, pair.pop("arrays"))
            pairs.append({"file": name, **pair})
    write_json(path, {"kind": kind, "seed": seed, "index": index, "pairs": pairs})
    return path


def _targets(rng: np.random.Generator, scan: SimulatedScan, how: StudyKind) -> list[int]:
    """Numbers of the scanners that a scan is brought to; its own makes an identity pair."""
    own = int(scan.site[1:])
    others = [n for n in range(how.scanners) if n != own]
    chosen = rng.permutation(others)[:how.targets].tolist()
    return [*chosen, own] if rng.random() < IDENTITY else chosen


def _scans(rng: np.random.Generator, scanners: Sequence[SimulatedScanner], maps: Path,
           map_count: int, how: StudyKind, index: int, cache: Path) -> list[SimulatedScan]:
    """Simulate the scans of a study, with different anatomies at each scanner."""
    scans = []
    for number, scanner in enumerate(scanners):
        for subject in range(int(rng.integers(how.subjects[0], how.subjects[1] + 1))):
            anatomy = _anatomy(rng, maps, map_count, how, index, cache)
            grid = (template_scan_grid(rng, load_template(how.template_mm)) if how.direct
                    else scan_grid(rng, anatomy, scanner.voxel_mm))
            native = acquire(rng, anatomy, scanner, grid, render(anatomy, scanner),
                             _noise_factor(rng, scanner, how))
            template = native if how.direct else _on_template(native, how.template_mm)
            scans.append(SimulatedScan(f"s{number}p{subject}", f"s{number}", anatomy, grid, native,
                                       template, _probabilities(template)))
    return scans


def _noise_factor(rng: np.random.Generator, scanner: SimulatedScanner, how: StudyKind) -> float:
    """Return the noise on a template grid relative to that of the scanner's voxels.

    Averaging the scanner's voxels within one of the template's reduces white noise by the root of
    their number. Correlated noise falls less, so the exponent is drawn.
    """
    if not how.direct:
        return 1.0
    averaged = max(float(how.template_mm) ** 3 / float(np.prod(scanner.voxel_mm)), 1.0)
    return float(averaged ** -rng.uniform(0.35, 0.5))


def _anatomy(rng: np.random.Generator, maps: Path, map_count: int, how: StudyKind, index: int,
             cache: Path) -> Anatomy:
    """Draw an anatomy: a label map, or sometimes a phantom; others for validation studies."""
    validation = index >= VALIDATION_FROM
    draw = int(rng.integers(1_000_000))
    if rng.random() < (0.5 if how.anatomy_mm > 1.5 else 0.15):
        seed = PHANTOM_SEEDS[validation] + draw
        return phantom_anatomy(seed, float(rng.uniform(18, 85)), str(rng.choice(["F", "M"])),
                               how.anatomy_mm)
    first = map_count - HELD_OUT_MAPS if validation else 0
    last = map_count if validation else map_count - HELD_OUT_MAPS
    return label_map_anatomy(maps, int(rng.integers(first, last)), draw, how.anatomy_mm, cache)


def _on_template(native: Volume, resolution_mm: int) -> Volume:
    """Resample a scan to the template grid as preprocessing does, zero outside the mask."""
    volume = resample(native, load_template(resolution_mm), antialias=True)
    return volume.with_data(np.where(volume.require_mask(), volume.data, np.float32(0)))


def _probabilities(volume: Volume) -> np.ndarray:
    """Return probabilities (3, I, J, K) by the segmenter that is used at this voxel size."""
    from ....contrast.local_statistics import stack_probabilities
    from ....segmentation.coarse import CoarseSegmenter
    from ....segmentation.predict import NetworkSegmenter

    coarse = float(volume.spacing.max()) > 1.5
    segment = CoarseSegmenter() if coarse else NetworkSegmenter(quick=True)
    return stack_probabilities(segment(volume), volume)


class _MeasuredOnce(TissueMatching):
    """Tissue matching that measures each scan once for all targets."""

    def __init__(self) -> None:
        super().__init__(TissueMatching.Config(texture="keep"))
        self._found: dict[int, Any] = {}

    def _segment_and_measure(self, volume: Volume, tissues: Mapping[str, np.ndarray]
                             ) -> tuple[LocalStatistics, np.ndarray]:
        if id(volume) not in self._found:
            self._found[id(volume)] = super()._segment_and_measure(volume, tissues)
        return self._found[id(volume)]


def _fitted(scans: Sequence[SimulatedScan]) -> _MeasuredOnce:
    """Fit tissue matching on a study."""
    method = _MeasuredOnce()
    method._fit(Cohort(tuple(scans)), 0, lambda done, total: None)  # type: ignore[arg-type]
    method.modality_ = "T1w"
    method.sites_ = Cohort(tuple(scans)).sites  # type: ignore[arg-type]
    return method


def _pair(rng: np.random.Generator, method: Any, scan: SimulatedScan, card: np.ndarray,
          number: int, target: SimulatedScanner, target_card: np.ndarray, how: StudyKind
          ) -> dict[str, Any]:
    """Make one pair: arrays (7, I, J, K) float16 (channels, then truth) and its numbers."""
    same = scan.site == f"s{number}"
    context = ScanContext(None if same or rng.random() < 0.4 else scan.site, {},
                  scan.read_tissues())
    change: TissueMap = method._map_of(scan.template, method.target(f"s{number}"), context)
    image = scan.native if how.native else scan.template
    box = _crop(rng, image.require_mask(), how.crop)
    inside = np.zeros(image.shape, bool)
    inside[box] = image.require_mask()[box]
    masked = image.with_mask(inside)
    before, after = levels_of(change)
    baseline = change.apply(masked).data[box] / np.float32(after)
    probabilities = np.zeros((3, *baseline.shape), np.float32)
    probabilities[:, inside[box]] = change.probabilities.sample(image.affine, inside)
    own = image.data[box] / np.float32(before)
    truth = own if same else _truth(scan, target, image, how)[box] / np.float32(after)
    mask = inside[box]
    stack = stack_channels(baseline, own, probabilities, mask)
    stack = np.concatenate([stack, (truth * mask)[None].astype(np.float32)])
    core = ndimage.binary_erosion(mask)
    core = core if core.any() else mask
    wrong = (stack[-1] - stack[0])[core]
    level = np.linalg.lstsq(stack[2:5][:, core].T, wrong, rcond=None)[0]
    spacing = np.sqrt((image.affine[:3, :3] ** 2).sum(axis=0))
    numbers = condition(target_card, card, map_numbers(change), spacing, float(how.template_mm))
    return {"arrays": stack.astype(np.float16), "condition": [float(v) for v in numbers],
            "error": float(np.mean(wrong ** 2)), "level": [float(v) for v in level],
            "identity": bool(same),
            "source_known": context.source is not None,
            "shape": list(mask.shape), "voxels": int(mask.sum()),
            "target_noise": float(target.noise)}


def _truth(scan: SimulatedScan, target: SimulatedScanner, image: Volume, how: StudyKind
           ) -> np.ndarray:
    """Render the anatomy of a scan by the target scanner, without noise and bias field."""
    native = sample(render(scan.anatomy, target), scan.anatomy, scan.grid)
    if how.native or how.direct:
        return native
    return resample(Volume(native, scan.grid.affine), image, antialias=True).data


def _crop(rng: np.random.Generator, mask: np.ndarray, side: int) -> tuple[slice, ...]:
    """Draw a box of at most `side` voxels along each axis, inside the bounding box of the mask."""
    box = []
    for axis in range(3):
        found = np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))
        low, high = int(found[0]), int(found[-1]) + 1
        if high - low > side:
            low = int(rng.integers(low, high - side + 1))
            high = low + side
        box.append(slice(low, high))
    return tuple(box)
