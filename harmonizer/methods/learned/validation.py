"""How good is a method with networks on people it does not train on? Cases whose truth is known.

A held-out person's scan is put under a simulated scanner that nobody knows, and is to be brought
back to its own site: the truth is the scan itself. The site is what its other people look like, as
in use; so a method that takes what a person is made of for contrast is found out.

The first guess of each case is made once, by the method without training that the networks start
from, fitted on other people of the site; truth and first guess are then brought to one gain, for a
scan's own gain is no contrast. Tissues are those of the scan itself: a simulated scanner may show
what no segmentation, and no scanner, knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...bounding_box import Canvas
from ...cohort import Cohort, Scan
from ...contrast.intensity import IntensityScale
from ...volume import Volume
from ..base import Known, StatisticsBackend
from ..target import Target

__all__ = ["Case", "make_cases", "judged"]

JUDGED = 8  # other people of the site that stand for it
NOTHING = 1e-8  # mean square, of the range, of a change that is only rounding


@dataclass(frozen=True, eq=False)
class Case:
    """One held-out scan under a simulated scanner.

    Attributes
    ----------
    first : the first guess, in the unit of its site; the middle slices alone
    truth : the scan as it was, same slices
    tissues : their shares in these slices; empty where `start` does not ask for them
    site, modality : where and how it was scanned
    references : the same slices of other people's scans there, and their tissues
    """

    first: Volume
    truth: Volume
    tissues: Mapping[str, np.ndarray]
    site: str
    modality: str
    references: tuple[tuple[Volume, Mapping[str, np.ndarray]], ...]

    def miss(self) -> np.ndarray:
        """(n,) truth - first guess in the brain, of the truth's 0.5 to 99.5 % range."""
        return (self.truth.in_mask() - self.first.in_mask()) / self.range

    @property
    def range(self) -> float:
        """The truth's 0.5 to 99.5 % range in the brain."""
        low, high = np.quantile(self.truth.in_mask(), [0.005, 0.995])
        return max(float(high - low), 1e-6)


def make_cases(cohort: Cohort, trained: tuple[int, ...], held: tuple[int, ...],
               start: StatisticsBackend | None, count: int, depth: int, seed: int) -> list[Case]:
    """`count` cases of held-out scans, of sites at which others are trained on.

    Parameters
    ----------
    trained, held : indices of scans of the cohort; no person is in both
    start : not fitted yet; fitted here on trained scans. None: two percentiles are matched. Where
        it goes by tissue, the tissues of all scans are known
    depth : axial slices around the brain's middle; 0 = all
    """
    others = {site: [cohort.scans[i] for i in trained if cohort.scans[i].site == site][:JUDGED]
              for site in cohort.sites}
    pool = [cohort.scans[i] for i in held if others[cohort.scans[i].site]]
    if not pool:
        return []
    sites = sorted({scan.site for scan in pool})
    if start is not None:
        start.fit(Cohort(tuple(scan for site in sites for scan in others[site])), seed=seed)
    references = {site: tuple(_reference(scan, start, depth) for scan in others[site])
                  for site in sites}
    return [_case(pool[number % len(pool)], references, start, depth,
                  np.random.default_rng([seed, number, 3])) for number in range(count)]


def judged(cases: list[Case], changes: list[np.ndarray]) -> dict[str, float]:
    """What changes are worth, and which share of them is.

    Parameters
    ----------
    changes : of each case, (I, J, K), what the networks would add to the first guess

    Returns
    -------
    dict
        ``share``, 0 to 1: of the changes that comes nearest to the truths (least squares over all
        cases, each relative to its own error without them: a scanner that nothing explains does
        not outvote the others); ``error`` with that share of them and ``null`` without: root mean
        square in the brain over the truth's range, geometric mean over cases.
    """
    misses = [case.miss() for case in cases]
    found = [change[case.truth.mask] / case.range for case, change in zip(cases, changes)]
    weights = [1 / max(_square(m), NOTHING) for m in misses]
    along = sum(w * np.mean(m * c, dtype=np.float64) for w, m, c in zip(weights, misses, found))
    length = sum(w * _square(c) for w, c in zip(weights, found))
    some = any(_square(c) > NOTHING for c in found)
    share = float(np.clip(along / length, 0, 1)) if some else 0.0
    return {"error": _size([m - np.float32(share) * c for m, c in zip(misses, found)]),
            "null": _size(misses), "share": share}


def _square(values: np.ndarray) -> float:
    return float(np.mean(values * values, dtype=np.float64))


def _size(misses: list[np.ndarray]) -> float:
    return float(np.exp(np.mean([0.5 * np.log(max(_square(m), 1e-20)) for m in misses])))


def _reference(scan: Scan, start: StatisticsBackend | None, depth: int
               ) -> tuple[Volume, Mapping[str, np.ndarray]]:
    volume = scan.read()
    at, middle = _middle(volume, depth)
    return middle, _cut(_tissues_of(scan, start), at)


def _case(scan: Scan, references: Mapping[str, tuple[tuple[Volume, Mapping[str, np.ndarray]], ...]],
          start: StatisticsBackend | None, depth: int, rng: np.random.Generator) -> Case:
    whole = scan.read()
    source, tissues = _under_another_scanner(whole, rng), _tissues_of(scan, start)
    if start is None:
        first = matched_percentiles(source, _percentiles([v for v, _ in references[scan.site]]))
    else:
        target = Target("site", scan.site, 1, start.name, scan.modality,
                        start._site_style(scan.site))
        known = Known(covariates={**scan.covariates, "age": scan.age, "sex": scan.sex},
                      tissues=tissues)
        first = start._map_of(source, target, known).apply(source)
    guess, truth = first.in_mask().astype(np.float64), whole.in_mask().astype(np.float64)
    gain = max(guess @ truth, 0.0) / max(truth @ truth, 1e-30)
    at, truth_shown = _middle(whole.with_data(whole.data * np.float32(gain or 1.0)), depth)
    return Case(_middle(first, depth)[1], truth_shown, _cut(tissues, at), scan.site,
                scan.modality, references[scan.site])


def _tissues_of(scan: Scan, start: StatisticsBackend | None) -> Mapping[str, np.ndarray]:
    return scan.read_tissues() if start is not None and start.by_tissue else {}


def matched_percentiles(volume: Volume, percentiles: np.ndarray) -> Volume:
    """A volume whose two robust percentiles in the brain are these; nothing becomes negative."""
    goal = IntensityScale(*(float(v) for v in percentiles))
    values = goal.from_unit(IntensityScale.of(volume.in_mask()).to_unit(volume.data))
    return volume.with_data(np.where(volume.mask, np.where(volume.data >= 0,
                                     np.maximum(values, 0), values), volume.data))


def _percentiles(volumes: list[Volume]) -> np.ndarray:
    scales = [IntensityScale.of(volume.in_mask()) for volume in volumes]
    return np.mean([(scale.low, scale.high) for scale in scales], axis=0)


def _under_another_scanner(truth: Volume, rng: np.random.Generator) -> Volume:
    """The same scan in another contrast, with a bias field, blur and noise; intensities 0..200."""
    import torch

    from ...deep.augmentation.contrast import ContrastSettings, draw_view

    assert truth.mask is not None
    view = draw_view(rng, ContrastSettings(bias=0.2, blur=0.6, noise=0.03), 3)
    canvas = Canvas.around(truth.mask, (1, 1, 1))
    unit = np.clip(IntensityScale.of(truth.in_mask()).to_unit(truth.data), -1, 1)
    image, mask = (torch.from_numpy(canvas.take(a.astype(np.float32)))[None, None]
                   for a in (np.where(truth.mask, unit, -1), truth.mask))
    seen = 100 * (view.apply(image, mask) + 1) * mask
    return truth.with_data(canvas.put(seen[0, 0].numpy(), np.zeros(truth.shape, np.float32)))


def _cut(tissues: Mapping[str, np.ndarray], at: Any) -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(share[at]) for name, share in tissues.items()}


def _middle(volume: Volume, depth: int) -> tuple[Any, Volume]:
    """Where the slices around the brain's middle are, and they as a volume of their own."""
    assert volume.mask is not None
    hits: Any = np.flatnonzero(volume.mask.any(axis=(0, 1)))
    middle, half = (int(hits[0]) + int(hits[-1]) + 1) // 2, (depth or 2 * volume.shape[2]) // 2
    low = max(0, middle - half)
    at = np.s_[:, :, low:middle + max(1, half)]
    affine = volume.affine.copy()
    affine[:3, 3] += low * affine[:3, 2]
    return at, Volume(np.ascontiguousarray(volume.data[at]), affine,
                      np.ascontiguousarray(volume.mask[at]))
