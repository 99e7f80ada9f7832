"""Input of an evaluation: the scans of one modality that every method has, checked before use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..cohort import Cohort
from ..errors import InputError, UsageError, did_you_mean
from ..segmentation.segmentations import Segment
from ..template import TEMPLATE, template_affine
from ..volume import AFFINE_TOLERANCE_MM, load_nifti, same_grid
from .metrics.distribution import QuantileTable, intensity_range, moment_map
from .metrics.scan_features import ScanMeasurements
from .paired_metrics import PairedMetrics
from .questions.anatomy_limits import Tolerance
from .statistics.design import Design

__all__ = ["EvaluationInput", "Features", "prepare_input", "require_template_grid",
           "split_subjects_by_site"]


@dataclass(frozen=True)
class Features:
    """Features of all scans by one method; a missing value is NaN.

    Attributes
    ----------
    texture : ndarray, shape (n, F)
        Texture features, see `questions.scanner.texture_features`.
    ratios : mapping of str to ndarray, shape (n,)
        Tissue volume ratio, 0 to 1, by tissue; empty without a segmenter.
    means : mapping of str to ndarray, shape (n,)
        Mean intensity of a tissue, by measure; empty without tissue priors.
    names : tuple of str
        Names of the texture features; numbered if empty.
    """

    texture: np.ndarray
    ratios: Mapping[str, np.ndarray]
    means: Mapping[str, np.ndarray]
    names: tuple[str, ...] = ()

    def columns(self) -> dict[str, np.ndarray]:
        """Return all features by name, each of shape (n,), in the order of `matrix`."""
        names = self.names or tuple(f"feature {i + 1}" for i in range(self.texture.shape[1]))
        return {**dict(zip(names, self.texture.T)), **self.means_and_ratios()}

    def means_and_ratios(self) -> dict[str, np.ndarray]:
        """Return tissue ratios, named such as "GM ratio", and mean intensities."""
        return {**{f"{tissue} ratio": column for tissue, column in self.ratios.items()},
                **self.means}

    def matrix(self) -> np.ndarray:
        """Return all features as one table, shape (n, F), columns in a fixed order."""
        parts = [self.texture, *(column[:, None] for table in (self.ratios, self.means)
                                 for column in table.values())]
        return np.hstack(parts)


@dataclass(frozen=True)
class EvaluationInput:
    """What is evaluated in one modality, and how.

    The last four attributes are empty until `measurements.measure_images` fills them.

    Attributes
    ----------
    before : Cohort
        Preprocessed scans that every method has.
    variants : mapping of str to Cohort
        The same scans with harmonized images, by method.
    target : str
        Site harmonized to, or another name.
    reference : str
        Site that the others are compared with in paired tests and slopes.
    covariates : tuple of str
        Covariates whose effects must be preserved.
    checked : tuple of str
        Variables, beside age and sex, that are compared with the site.
    design : Design
        Subject, site and covariates of each scan.
    has_traveling_subjects : bool
        Whether subjects scanned at two or more sites are compared across sites.
    seed : int
        Seed of all folds, permutations and bootstrap samples.
    permutations : int
        Permutations for each chance level.
    segment : callable, optional
        Segmenter of a volume.
    cache : Path, optional
        Folder for the numbers of each scan.
    paired_metrics : mapping of str to PairedMetrics
        By method; the key is "" if there is no method.
    features : mapping of str to Features
        By method; "" stands for the unharmonized images.
    measurements : mapping of str to ScanMeasurements
        By scan identifier.
    tolerance : Tolerance
        Limits of the anatomy guard.
    """

    before: Cohort
    variants: Mapping[str, Cohort]
    target: str
    reference: str
    covariates: tuple[str, ...]
    checked: tuple[str, ...]
    design: Design
    has_traveling_subjects: bool
    seed: int
    permutations: int
    segment: Segment | None = None
    cache: Path | None = None
    paired_metrics: Mapping[str, PairedMetrics] = field(default_factory=dict)
    features: Mapping[str, Features] = field(default_factory=dict)
    measurements: Mapping[str, ScanMeasurements] = field(default_factory=dict)
    tolerance: Tolerance = field(default_factory=Tolerance)

    @property
    def modality(self) -> str:
        """BIDS suffix of all scans."""
        return self.before.scans[0].modality

    @property
    def first_metrics(self) -> PairedMetrics:
        """Paired metrics of the first method; those of the images before are the same for all."""
        return next(iter(self.paired_metrics.values()))

    def quantiles_before(self) -> QuantileTable:
        """Return the quantile functions of the unharmonized images inside the brain mask."""
        return self.first_metrics.quantiles.select(stage="before", tissue="brain")

    def target_quantiles(self) -> np.ndarray:
        """Return the mean quantile function, shape (200,), of the target site before.

        If the target is not a site, the mean over the images of the first method.
        """
        before = self.quantiles_before()
        after = self.first_metrics.quantiles.select(stage="after", tissue="brain")
        table = next(part for part in (before.select(site=self.target), after, before) if len(part))
        return table.matrix().mean(axis=0)

    def linear_maps(self) -> dict[str, tuple[float, float]]:
        """Return gain and offset by scan that match mean and std of the target."""
        table = self.quantiles_before()
        gain, offset = moment_map(table.matrix(), self.target_quantiles())
        return {name: (float(a), float(b))
                for name, a, b in zip(table.column("scan"), gain[:, 0], offset[:, 0])}

    def data_range(self) -> float:
        """Return R, the intensity range of the study, in intensity units.

        Raises
        ------
        InputError
            If the unharmonized images are constant.
        """
        found = intensity_range(self.target_quantiles())
        if not found > 0:
            raise InputError("expected unharmonized images with a range of intensities, got none. "
                             "Check the preprocessed images.")
        return found


def prepare_input(
    before: Cohort,
    variants: Mapping[str, Cohort],
    target: str,
    reference_site: str | None,
    covariates: Sequence[str],
    checked: Sequence[str],
    *,
    traveling: bool,
    seed: int,
    permutations: int,
    segment: Segment | None,
    cache: Path | None,
) -> EvaluationInput:
    """Select the scans that every method has and check the names before any image is opened.

    Parameters
    ----------
    before : Cohort
        Preprocessed scans of one modality.
    variants : mapping of str to Cohort
        Harmonized scans by method; methods without any scan of this modality are left out.
    target, reference_site, covariates, checked
        See `harmonizer.evaluation.run.evaluate`.
    traveling : bool
        Whether a subject label at several sites is one subject.
    seed, permutations, segment, cache
        See `EvaluationInput`.

    Returns
    -------
    EvaluationInput
        Subjects and covariates are those of `before`.

    Raises
    ------
    InputError
        If no scan has an image of every method, or a covariate is unknown.
    UsageError
        If the reference site has no scan.
    """
    by_id = {name: {scan.scan_id: scan for scan in cohort} for name, cohort in variants.items()}
    by_id = {name: scans for name, scans in by_id.items()
             if any(scan.scan_id in scans for scan in before)}
    shared = before.where(lambda scan: all(scan.scan_id in scans for scans in by_id.values()))
    if not len(shared):
        raise InputError(f"no {before.scans[0].modality} scan has an image of every method "
                         f"({', '.join(by_id)}). Leave one out of the comparison.")
    if reference_site is not None and reference_site not in shared.sites:
        raise UsageError(f"reference site {reference_site!r} has no scan to compare. "
                         f"{did_you_mean(reference_site, shared.sites)}")
    reference = reference_site or (target if target in shared.sites else shared.largest_site)
    images = {name: Cohort(tuple(replace(scan, image=scans[scan.scan_id].image,
                                         mask=scans[scan.scan_id].mask) for scan in shared))
              for name, scans in by_id.items()}
    design = Design.of(shared.scans)
    for name in covariates:
        design.column(name)  # raises InputError for an unknown covariate
    return EvaluationInput(
        shared, images, target, reference, tuple(covariates),
        _site_checked(design, (*covariates, *checked)), design,
        traveling and design.kind != "nested", seed, permutations, segment, cache)


def _site_checked(design: Design, names: Sequence[str]) -> tuple[str, ...]:
    """Return the variables, beside age and sex, that are compared with the site, each once."""
    names = [name for name in dict.fromkeys(names) if name not in ("age", "sex", "site")]
    for name in names:
        design.column(name)  # raises InputError for an unknown column
    return tuple(names)


def split_subjects_by_site(cohort: Cohort) -> Cohort:
    """Return the cohort with a label at two sites treated as two subjects."""
    return Cohort(tuple(replace(scan, subject=f"{scan.subject}@{scan.site}") for scan in cohort))


def require_template_grid(before: Cohort, priors: Mapping[str, np.ndarray]) -> None:
    """Check that images lie on the grid of the template whose priors are read voxel by voxel.

    Parameters
    ----------
    before : Cohort
        Scans on one grid.
    priors : mapping of str to ndarray, shape (I, J, K)
        Tissue probabilities.

    Raises
    ------
    InputError
        If the priors have the shape of the template at 1 or 2 mm and the images have another grid.
    """
    shape = next(iter(priors.values())).shape
    affine = template_affine(shape)
    image = load_nifti(before.scans[0].image)
    if affine is not None and not same_grid(image.shape[:3], image.affine, shape, affine):
        raise InputError(
            f"{before.scans[0].image}: expected an image on the grid of the {TEMPLATE} template, "
            f"shape {shape}, to which the tissue priors belong, got shape {image.shape[:3]} or "
            f"another affine (tolerance {AFFINE_TOLERANCE_MM} mm). Register the images to the "
            "template, or evaluate without priors.")
