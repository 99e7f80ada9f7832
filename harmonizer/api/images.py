"""Preprocess and segment single images, and keep preprocessed images as a cohort."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..cohort import Cohort, Scan
from ..errors import InputError
from ..preprocessing.pipeline import PreprocessedImage, preprocess_image
from ..preprocessing.transforms import resample
from ..template import load_template
from ..tissues import TISSUES
from ..volume import write_mask, write_volume

__all__ = ["Image", "preprocess", "segment", "as_registered", "with_tissues", "cohort_of",
           "table_columns"]

Image = Any  # a path, a nibabel image, or a PreprocessedImage


def preprocess(image: Image, mask: Image | None = None, *, resolution_mm: int = 1,
               skull_strip: str = "auto", seed: int = 0, sloppy: bool = False
               ) -> PreprocessedImage:
    """Correct the bias field of an image, find the brain, and register it to the template.

    Parameters
    ----------
    image : path or nibabel image
        One 3D image of a head or a brain. A `PreprocessedImage` is returned as it is.
    mask, resolution_mm, skull_strip, seed, sloppy
        See `harmonizer.preprocessing.pipeline.preprocess_image`.

    Returns
    -------
    PreprocessedImage

    Raises
    ------
    InputError
        If the image cannot be used or no brain is found.
    """
    if isinstance(image, PreprocessedImage):
        return image
    return preprocess_image(image, mask, resolution_mm=resolution_mm, skull_strip=skull_strip,
                            seed=seed, sloppy=sloppy)


def segment(image: Image, mask: Image | None = None, *, seed: int = 0, threads: int = 1
            ) -> dict[str, Any]:
    """Estimate the tissue probabilities of an image of any contrast.

    Parameters
    ----------
    image : path, nibabel image, or PreprocessedImage
        One 3D image of a head or a brain.
    mask : path or nibabel image, optional
        Brain mask on the image's own grid. Default: the brain is extracted.
    seed : int
        See `preprocess`.
    threads : int
        Threads of torch.

    Returns
    -------
    dict of str to nibabel.Nifti1Image
        Probabilities (0 to 1, float32) of ``CSF``, ``GM`` and ``WM``, and the brain ``mask``, on
        the image's own grid.

    Raises
    ------
    InputError
        As `preprocess`.
    """
    from ..segmentation.predict import segment as segment_volume

    done = preprocess(image, mask, seed=seed)
    found = segment_volume(done.native, threads=threads)
    images = {name: done.to_nifti(np.asarray(found.tissues[name], np.float32)) for name in TISSUES}
    return {**images, "mask": done.to_nifti(done.native.require_mask())}


def tissues_on_template(image: PreprocessedImage, sloppy: bool) -> dict[str, np.ndarray]:
    """Return tissue probabilities on the template grid; the coarse segmenter's if `sloppy`."""
    if image.tissues:
        return image.tissues
    if sloppy:
        from ..segmentation.coarse import CoarseSegmenter

        return dict(CoarseSegmenter()(image.template))
    from ..segmentation.predict import segment as segment_volume

    found = segment_volume(image.native)
    grid = image.template.with_mask(None)
    return {name: resample(image.native.with_mask(None).with_data(found.tissues[name]), grid,
                           image.to_template, antialias=True).data for name in TISSUES}


def write_scan(folder: Path, number: int, image: PreprocessedImage, site: str, subject: str,
               modality: str, covariates: Mapping[str, Any]) -> Scan:
    """Write a preprocessed image below a folder, as the scan of a cohort.

    Parameters
    ----------
    folder : Path
        Where the files go.
    number : int
        Position of the image in the list; part of the file names.
    image : PreprocessedImage
        With its tissues, if there are any.
    site, subject, modality : str
        Labels of the scan.
    covariates : mapping
        Covariates of the subject; ``age`` in years and ``sex`` (M or F) are known by name.
    """
    name = f"scan-{number:05d}"
    tissues = {}
    for tissue, probability in image.tissues.items():
        volume = image.template.with_mask(None).with_data(probability)
        tissues[tissue] = write_volume(folder / f"{name}_{tissue}.nii", volume)
    known = {key: value for key, value in covariates.items() if not _is_missing(value)}
    age, sex = known.pop("age", None), known.pop("sex", None)
    return Scan(
        name, subject, None, modality, site, "given", write_volume(folder / f"{name}.nii",
                                                                   image.template),
        write_mask(folder / f"{name}_mask.nii", image.template.require_mask(),
                   image.template.affine),
        None if age is None else float(age), None if sex is None else str(sex),
        {key: str(value) for key, value in known.items()}, tissues)


def table_columns(covariates: Any, rows: int) -> list[dict[str, Any]]:
    """Return one dict of covariates for each row of a DataFrame or mapping of columns.

    Raises
    ------
    InputError
        If a column has another length.
    """
    if covariates is None:
        return [{} for _ in range(rows)]
    names = list(covariates.columns) if hasattr(covariates, "columns") else list(covariates)
    columns = {str(name): list(covariates[name]) for name in names}
    for name, column in columns.items():
        if len(column) != rows:
            raise InputError(f"covariate {name!r} has {len(column)} values for {rows} images. Give "
                             "one value per image.")
    return [{name: column[row] for name, column in columns.items()} for row in range(rows)]


def as_registered(image: Image, mask: Image | None) -> PreprocessedImage:
    """Take an image that lies on the template grid already, with its brain mask.

    Raises
    ------
    InputError
        If the image is not on the grid of the template at 1 or 2 mm, or has no mask: it would be
        harmonized as if it were registered.
    """
    from ..preprocessing.brain import check_quality, foreground_mask, is_brain_only
    from ..preprocessing.conform import conform

    conformed = conform(image)
    volume = conformed.volume
    grids = [load_template(resolution) for resolution in (1, 2)]
    if not any(volume.same_grid(grid) for grid in grids):
        raise InputError(
            f"{conformed.source}: expected an image on the template grid, shape "
            f"{' or '.join(str(grid.shape) for grid in grids)}, got {volume.shape} or another "
            "affine. Leave registered=True out, so that the image is preprocessed.")
    stripped = is_brain_only(volume)
    if mask is None and not stripped:
        raise InputError(f"{conformed.source}: is not brain only. Give its brain mask.")
    inside = foreground_mask(volume) if mask is None else conform(mask).volume.data > 0.5
    volume = volume.with_mask(inside)
    return PreprocessedImage(volume, volume, np.eye(4), conformed,
                             check_quality(volume.with_mask(None), inside, np.eye(4)), stripped)


def with_tissues(image: PreprocessedImage, sloppy: bool) -> PreprocessedImage:
    """Return the image with tissue probabilities."""
    return replace(image, tissues=tissues_on_template(image, sloppy))


def cohort_of(folder: Path, images: Sequence[PreprocessedImage], sites: Sequence[str],
              subjects: Sequence[str], modality: str, covariates: Sequence[Mapping[str, Any]]
              ) -> Cohort:
    """Write preprocessed images below a folder and return them as a cohort."""
    return Cohort(tuple(
        write_scan(folder, number, image, str(site), str(subject), modality, known)
        for number, (image, site, subject, known)
        in enumerate(zip(images, sites, subjects, covariates))))


def _is_missing(value: Any) -> bool:
    return value is None or str(value).strip() in ("", "n/a", "nan", "NaN", "None")

