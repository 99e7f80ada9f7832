"""Measurements of a scan and its harmonized images: texture, tissues, anatomy, fingerprints.

Each image is read once, one method at a time, and only numbers are kept. With a cache, another
covariate needs no image.
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
from ..cache import array_key, cached_summary, file_key, with_nan, without_nan
from ..questions.anatomy import compare_anatomy
from ..questions.scanner import texture_features
from ..questions.subject import fingerprint
from ..table import MEASURES, RESCALED, Metric

__all__ = ["Progress", "ScanJob", "ScanMeasurements", "measure_scan", "process_pool",
           "texture_rows"]

Progress = Callable[[str, int, int], None]
"""Called with a label, the jobs done and the jobs in total."""


@dataclass(frozen=True)
class ScanMeasurements:
    """Measurements of one scan by method; the key "" is the unharmonized image.

    `RESCALED` is the linearly rescaled image in `texture` and `ratios`.

    Attributes
    ----------
    scan_id : str
        Scan identifier.
    texture : mapping of str to mapping of str to float
        Texture features, noise and blur.
    ratios : mapping of str to mapping of str to float
        Tissue ratios, 0 to 1.
    anatomy : mapping of str to mapping of str to float
        Anatomy measures of the harmonized images, see `compare_anatomy`.
    fingerprints : mapping of str to ndarray, shape (blocks,)
        See `questions.subject.fingerprint`.
    """

    scan_id: str
    texture: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    ratios: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    anatomy: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    fingerprints: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class ScanJob:
    """One scan, its harmonized images by method, and how to measure them.

    Attributes
    ----------
    scan : Scan
        Unharmonized scan.
    variants : mapping of str to Scan
        Harmonized image by method.
    labels : ndarray, shape (I, J, K), or None
        Tissue labels of the template.
    gray_range : tuple of float
        Lowest and highest intensity of the study.
    segment : callable or None
        Segmenter of a volume.
    cache : Path or None
        Folder of the cache.
    linear : tuple of float
        Gain and offset that give the scan the target's mean and standard deviation.
    limits : mapping of str to float, optional
        Limits of the anatomy guard, see `compare_anatomy`.
    """

    scan: Scan
    variants: Mapping[str, Scan]
    labels: np.ndarray | None
    gray_range: tuple[float, float]
    segment: Segment | None = None
    cache: Path | None = None
    linear: tuple[float, float] = (1.0, 0.0)
    limits: Mapping[str, float] | None = None


def measure_scan(job: ScanJob) -> ScanMeasurements:
    """Measure a scan and its harmonized images, or read the measurements from the cache.

    Parameters
    ----------
    job : ScanJob
        Images and settings.

    Returns
    -------
    ScanMeasurements
        All numbers.

    Raises
    ------
    InputError
        If an image cannot be read or lies on another grid; the message names the scan.
    """
    images = [job.scan.image, job.scan.mask,
              *(path for scan in job.variants.values() for path in (scan.image, scan.mask)),
              *job.scan.tissues.values()]
    key = file_key(images, "scan with noise", sorted(job.variants), job.gray_range, job.linear,
                   sorted((job.limits or {}).items()), array_key(job.labels),
                   job.segment and name_of(job.segment))
    path = None if job.cache is None else Path(job.cache) / f"{key}.npz"
    if path is not None and path.is_file() and path.with_suffix(".json").is_file():
        found = with_nan(read_json(path.with_suffix(".json")))
        fingerprints = _read_fingerprints(path)
    else:
        found, fingerprints = _measure(job)
        if path is not None:
            write_json(path.with_suffix(".json"), without_nan(found))
            _write_fingerprints(path, fingerprints)
    return ScanMeasurements(job.scan.scan_id, found["texture"], found["ratios"],
                            found["anatomy"], fingerprints)


def _write_fingerprints(path: Path, fingerprints: Mapping[str, np.ndarray]) -> None:
    names = np.array(list(fingerprints))
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, names=names,
                            fingerprints=np.stack(list(fingerprints.values())))


def _read_fingerprints(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as stored:
        return dict(zip(stored["names"].tolist(), stored["fingerprints"]))


def _measure(job: ScanJob) -> tuple[dict[str, dict[str, dict[str, float]]], dict[str, np.ndarray]]:
    source = job.scan.read()
    labels = job.labels
    if labels is not None and labels.shape != source.shape:
        raise InputError(f"{job.scan.scan_id}: expected an image on the grid of the tissue labels "
                         f"{labels.shape}, got {source.shape}.")
    numbers: dict[str, dict[str, dict[str, float]]] = {"texture": {}, "ratios": {}, "anatomy": {}}
    before = cached_summary(job.cache, source, (job.scan.image, job.scan.mask), job.segment)
    _add(numbers, "", source, before, job)
    _add_rescaled(numbers, source, before, job)
    fingerprints = {"": fingerprint(source)}
    for backend, scan in job.variants.items():
        result = scan.read()
        if not source.same_grid(result):
            raise InputError(f"{job.scan.scan_id}: expected the image of {backend} on the grid of "
                             f"the preprocessed one {source.shape}, got {result.shape}.")
        after = cached_summary(job.cache, result, (scan.image, scan.mask), job.segment)
        _add(numbers, backend, result, after, job)
        numbers["anatomy"][backend] = compare_anatomy(
            source, result, job.segment, of_source=before, of_result=after,
            limits=job.limits)
        fingerprints[backend] = fingerprint(result)
    return numbers, fingerprints


def _add(numbers: dict[str, dict[str, dict[str, float]]], backend: str, volume: Volume,
         found: Summary | None, job: ScanJob) -> None:
    numbers["texture"][backend] = {**texture_features(volume, job.labels, job.gray_range),
                                   **_noise_and_blur(volume, job)}
    if found is not None:
        numbers["ratios"][backend] = found.ratios


def _add_rescaled(numbers: dict[str, dict[str, dict[str, float]]], source: Volume,
                  before: Summary | None, job: ScanJob) -> None:
    """Add the linearly rescaled image; what gain and offset do not change is taken from before."""
    gain, offset = job.linear
    rescaled = source.with_data(gain * source.data + offset)
    numbers["texture"][RESCALED] = {**numbers["texture"][""],
                                    **texture_features(rescaled, job.labels, job.gray_range)}
    if before is not None:
        same = getattr(job.segment, "ignores_linear_maps", False)
        found = before if same else summary_of(rescaled, job.segment)
        if found is not None:
            numbers["ratios"][RESCALED] = found.ratios


def _noise_and_blur(volume: Volume, job: ScanJob) -> dict[str, float]:
    """Return texture numbers in the tissues of the unharmonized scan, else of the template."""
    maps = job.scan.read_tissues()
    if not maps and job.labels is not None:
        maps = {name: (job.labels == code) * volume.mask
                for code, name in enumerate(TISSUES, start=1)}
    if not maps or not any(one[volume.mask].any() for one in maps.values()):
        return {}
    return measure_texture(volume, stack_probabilities(maps, volume)).numbers()


def texture_rows(scan: Scan, numbers: Mapping[str, float], backend: str, target: str
                 ) -> list[Metric]:
    """Return rows of noise, blur and band energies of one scan by one method.

    Parameters
    ----------
    scan : Scan
        Which scan.
    numbers : mapping of str to float
        Its texture numbers.
    backend : str
        Method; "" for the unharmonized image.
    target : str
        Site harmonized to.

    Returns
    -------
    list of Metric
        Stage "before" or "after".
    """
    rows = []
    for name, value in numbers.items():
        measure_name, tissue, reference = name, "brain", ""
        if name.startswith("band"):
            band, _, tissue = name.partition("_")
            low, high = (0.0, *BAND_SIGMAS_MM)[int(band[4:]) - 1:][:2]
            measure_name, reference = "band_std", f"{low:g} to {high:g} mm"
        if measure_name in MEASURES and (
                measure_name == "band_std" or measure_name.startswith(("noise", "blur"))):
            rows.append(Metric(
                measure_name, value, MEASURES[measure_name].unit, "after" if backend else "before",
                scan.subject, scan.session or "", scan.scan_id, scan.modality, scan.site,
                tissue.upper() if tissue not in ("", "brain") else "brain", reference=reference,
                backend=backend, target=target if backend else ""))
    return rows


@contextmanager
def process_pool(workers: int, progress: Progress | None = None
           ) -> Iterator[Callable[[str], Callable[..., Iterable]]]:
    """Provide a ``map`` over scans in this process or in several, in order, with progress.

    New processes are spawned: forked ones would inherit the threads of ITK and BLAS. An interrupt
    ends them at once, because a scan takes minutes.

    Parameters
    ----------
    workers : int
        Processes; 1 works in this process.
    progress : callable, optional
        Called with (label, jobs done, jobs in total), from 0 on.

    Yields
    ------
    callable
        Takes a label and returns a ``map``.
    """
    if workers <= 1:
        yield partial(_report_progress, map, progress)
        return
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import active_children, get_context

    others = set(active_children())
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        try:
            yield partial(_report_progress, pool.map, progress)
        except KeyboardInterrupt:  # leaving the pool then waits for the others
            for worker in set(active_children()) - others:
                worker.kill()
            raise


def _report_progress(mapper: Callable[..., Iterable], progress: Progress | None, label: str
             ) -> Callable[..., Iterable]:
    """Return `mapper` with calls of `progress`."""
    if progress is None:
        return mapper

    def mapped(function: Callable[[Any], Any], jobs: Iterable[Any]) -> Iterator[Any]:
        every = list(jobs)
        progress(label, 0, len(every))
        for done, result in enumerate(mapper(function, every), start=1):
            progress(label, done, len(every))
            yield result

    return mapped
