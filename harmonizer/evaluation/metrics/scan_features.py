"""What one scan leaves behind for the referee: texture, tissue ratios, anatomy. Then it is closed.

A scan and its harmonized variants are opened once, one variant at a time; only numbers stay. They
can be kept in a folder, so that asking again with another covariate opens no image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...cohort import Scan
from ...contrast.local_statistics import stack_probabilities
from ...contrast.texture import BAND_SIGMAS_MM, measure_texture
from ...errors import InputError
from ...files import atomic_path, read_json, write_json
from ...segmentation.segmentations import Segment, Summary, name_of, summary_of
from ...tissues import TISSUES
from ...volume import Volume
from ..cache import array_key, file_key, with_nan, without_nan
from ..questions.anatomy import compare_anatomy
from ..questions.scanner import texture_features
from ..questions.subject import fingerprint
from ..table import MEASURES, Metric

__all__ = ["Job", "Numbers", "Progress", "measure", "spread", "texture_rows"]

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many are done, and how many there are."""


@dataclass(frozen=True)
class Numbers:
    """Numbers of one scan by method; "" stands for the unharmonized image.

    ``prints``: fingerprints (blocks,), see `identity.fingerprint`.
    """

    scan_id: str
    texture: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    ratios: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    anatomy: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    prints: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """One scan, its harmonized images by method, and how to measure them.

    ``labels`` (I, J, K) tissue of the template, or None; ``grey_range`` of the study; ``segment``
    or None; ``cache``: folder of kept numbers, or None.
    """

    scan: Scan
    variants: Mapping[str, Scan]
    labels: np.ndarray | None
    grey_range: tuple[float, float]
    segment: Segment | None = None
    cache: Path | None = None


def measure(job: Job) -> Numbers:
    """All numbers of a scan; InputError for an image that cannot be used, naming the scan."""
    images = [job.scan.image, job.scan.mask,
              *(path for scan in job.variants.values() for path in (scan.image, scan.mask)),
              *job.scan.tissues.values()]
    key = file_key(images, "scan with noise", sorted(job.variants), job.grey_range,
                   array_key(job.labels), job.segment and name_of(job.segment))
    path = None if job.cache is None else Path(job.cache) / f"{key}.npz"
    if path is not None and path.is_file() and path.with_suffix(".json").is_file():
        found, prints = with_nan(read_json(path.with_suffix(".json"))), _read_prints(path)
    else:
        found, prints = _measure(job)
        if path is not None:
            write_json(path.with_suffix(".json"), without_nan(found))
            _write_prints(path, prints)
    return Numbers(job.scan.scan_id, found["texture"], found["ratios"], found["anatomy"], prints)


def _write_prints(path: Path, prints: Mapping[str, np.ndarray]) -> None:
    names = np.array(list(prints))
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, names=names, prints=np.stack(list(prints.values())))


def _read_prints(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as kept_prints:
        return dict(zip(kept_prints["names"].tolist(), kept_prints["prints"]))


def _measure(job: Job) -> tuple[dict[str, dict[str, dict[str, float]]], dict[str, np.ndarray]]:
    source = job.scan.read()
    labels = job.labels
    if labels is not None and labels.shape != source.shape:
        raise InputError(f"{job.scan.scan_id}: expected an image on the grid of the tissue labels "
                         f"{labels.shape}, got {source.shape}.")
    numbers: dict[str, dict[str, dict[str, float]]] = {"texture": {}, "ratios": {}, "anatomy": {}}
    before = summary_of(source, job.segment)
    _add(numbers, "", source, before, job)
    prints = {"": fingerprint(source)}
    for backend, scan in job.variants.items():
        result = scan.read()
        if not source.same_grid(result):
            raise InputError(f"{job.scan.scan_id}: expected the image of {backend} on the grid of "
                             f"the preprocessed one {source.shape}, got {result.shape}.")
        after = summary_of(result, job.segment)
        _add(numbers, backend, result, after, job)
        numbers["anatomy"][backend] = compare_anatomy(
            source, result, job.segment, of_source=before, of_result=after)
        prints[backend] = fingerprint(result)
    return numbers, prints


def _add(numbers: dict[str, dict[str, dict[str, float]]], backend: str, volume: Volume,
         found: Summary | None, job: Job) -> None:
    numbers["texture"][backend] = {**texture_features(volume, job.labels, job.grey_range),
                                   **_noise_and_blur(volume, job)}
    if found is not None:
        numbers["ratios"][backend] = found.ratios


def _noise_and_blur(volume: Volume, job: Job) -> dict[str, float]:
    """Texture numbers by the tissues of the unharmonized scan, else by those of the template."""
    maps = job.scan.read_tissues()
    if not maps and job.labels is not None:
        maps = {name: (job.labels == code) * volume.mask
                for code, name in enumerate(TISSUES, start=1)}
    if not maps or not any(one[volume.mask].any() for one in maps.values()):
        return {}
    return measure_texture(volume, stack_probabilities(maps, volume)).numbers()


def texture_rows(scan: Scan, numbers: Mapping[str, float], backend: str, target: str
                 ) -> list[Metric]:
    """Rows of the noise, blur and band energies among a scan's texture numbers by one method."""
    rows = []
    for name, value in numbers.items():
        measure, tissue, reference = name, "brain", ""
        if name.startswith("band"):
            band, _, tissue = name.partition("_")
            low, high = (0.0, *BAND_SIGMAS_MM)[int(band[4:]) - 1:][:2]
            measure, reference = "band_std", f"{low:g} to {high:g} mm"
        if measure in MEASURES and (measure == "band_std" or measure.startswith(("noise", "blur"))):
            rows.append(Metric(
                measure, value, MEASURES[measure].unit, "after" if backend else "before",
                scan.subject, scan.session or "", scan.scan_id, scan.modality, scan.site,
                tissue.upper() if tissue not in ("", "brain") else "brain", reference=reference,
                backend=backend, target=target if backend else ""))
    return rows


@contextmanager
def spread(workers: int, progress: Progress | None = None
           ) -> Iterator[Callable[[str], Callable[..., Iterable]]]:
    """Yields label -> ``map`` over scans, in this process or in ``workers`` others; order is kept.

    ``progress`` is called with (label, jobs done, jobs in all), from 0 on. New processes are
    started clean (spawn): a fork would inherit the threads of ITK and BLAS. An interrupt (a
    scheduler's too) ends them at once: a scan takes minutes.
    """
    if workers <= 1:
        yield partial(_telling, map, progress)
        return
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import active_children, get_context

    others = set(active_children())
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        try:
            yield partial(_telling, pool.map, progress)
        except KeyboardInterrupt:  # then the pool, which misses them, is waited for as always
            for worker in set(active_children()) - others:
                worker.kill()
            raise


def _telling(mapper: Callable[..., Iterable], progress: Progress | None, label: str
             ) -> Callable[..., Iterable]:
    """``mapper``, which then says how far it is."""
    def told(function: Callable[[Any], Any], jobs: Iterable[Any]) -> Iterator[Any]:
        every = list(jobs)
        progress(label, 0, len(every))
        for done, result in enumerate(mapper(function, every), start=1):
            progress(label, done, len(every))
            yield result

    return mapper if progress is None else told
