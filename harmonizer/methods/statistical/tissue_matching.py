"""Local tissue matching: give each tissue, at each place, the brightness it has at the target.

The map is `harmonizer.contrast.tissue_map.TissueMap`. The fit stores, for each site, the local
means and standard deviations of CSF, GM and WM on a lattice of 4 mm. They are averaged over the
scans of the site after division by each scan's gain. docs/concepts/tissue-matching.md describes
method and results.

**Source maps.** The source of a map is a weighted mean of the site's maps and the scan's own maps.
The site's maps (weight 0) preserve the regional intensities of the subject; the scan's own maps
(weight 1) do not.
Let tau^2 be the variance between subjects. The mean over n subjects has the error variance
tau^2 / n as an estimate of the site, and one scan has tau^2. The combination
(1 - w) site + w scan with the smallest error has w = 1 / (n + 1), as in empirical Bayes [1]_. If a
fraction q of the variance comes from the scan (bias field, segmentation) instead of the subject, it
is to be removed: w = (q + 1/n) / (1 + 1/n). An unseen site has n = 0 and w = 1. A scan of the
target site has w = 0: only its gain changes.

**Outlying scans.** Let d^2 be the mean squared distance of a scan from its site's maps, and
e^2 = tau^2 (1 + 1/n) its expected value. A scan farther than `OUTLIER_DISTANCE` times e was
probably acquired with another protocol. Its weight is then at least
1 - OUTLIER_DISTANCE^2 e^2 / d^2 (positive-part James-Stein estimator [2]_). With few degrees of
freedom, e^2 is raised.

**Regional patterns.** The part of the regional pattern that is probably anatomical is removed from
source and target maps (`harmonizer.methods.statistical.regional_pattern`).

**Traveling subjects.** A segmentation has different errors on each scanner. All scans of a
traveling subject are therefore measured with the same tissue probabilities, their mean over the
scans. A new scan has only its own probabilities, so it is compared with a second set of maps for
which each scan's own probabilities were used (prefix `OWN_PREFIX`). Subjects who were scanned at
all sites add no error to the differences between sites and do not count in 1/n.

**Covariates.** Age, sex and named columns are regressed on within sites, at each lattice point.
Site maps are compared at the same covariates, and a scan is compared with what is expected at its
own (`harmonizer.methods.statistical.covariates`).

**Sites without scans in the fit.** The subjects of a fit may be selected, for example controls. If
a site has none, all its scans are of other subjects, such as patients. Regional matching would
remove the differences that the selection protects. Such a scan is given the regional pattern of the
average site, and the overall mean of each tissue is matched to the target. The setting
``left_out_sites="regional"`` requests regional matching.

**Texture.** After the change of contrast, noise and blur are matched to the target in frequency
bands (`harmonizer.contrast.texture_transfer`). With ``texture="keep"`` they are not changed, nor
are they for scans of the target site.

References
----------
.. [1] Johnson, W. E., Li, C. and Rabinovic, A. (2007). Adjusting batch effects in microarray
   expression data using empirical Bayes methods. doi:10.1093/biostatistics/kxj037
.. [2] James, W. and Stein, C. (1961). Estimation with quadratic loss. Proc. Fourth Berkeley
   Symposium on Mathematical Statistics and Probability, 1, 361-379.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...cohort import Cohort, Scan
from ...contrast.intensity_map import IntensityMap
from ...contrast.local_statistics import (
    Lattice,
    LocalStatistics,
    measure,
    pool,
    relative_gain,
    stack_probabilities,
    world_points,
)
from ...contrast.texture import ScanTexture, measure_texture, pool_textures
from ...contrast.texture_transfer import TexturedMap, TextureGains
from ...contrast.tissue_map import TissueMap, TissueProbabilities, std_ratio
from ...errors import InputError
from ...segmentation.atropos import AtroposSegmenter
from ...segmentation.coarse import CoarseSegmenter
from ...tissues import TISSUES
from ...volume import Volume
from ..base import MAX_INTENSITY, Capabilities, Progress, ScanContext, StatisticsBackend, read_scan
from ..config import Settings, setting
from ..target import Target
from .covariates import Column, Covariate, code_covariates, covariates_of, within_sites
from .regional_pattern import PatternVariances, lattice_weights, pattern_variance, without_pattern

__all__ = ["TissueMatching", "TissueMatchingConfig", "SEGMENTERS", "DEFAULT_SEGMENTER",
           "segment_with"]

SegmentTissues = Callable[[Volume], Mapping[str, np.ndarray]]


def _atropos() -> SegmentTissues:
    return AtroposSegmenter(own_grid=True)


def _network() -> SegmentTissues:
    from ...segmentation.predict import NetworkSegmenter

    return NetworkSegmenter()


SEGMENTERS: dict[str, Callable[[], SegmentTissues]] = {
    "network": _network, "coarse": CoarseSegmenter, "atropos": _atropos,
}
DEFAULT_SEGMENTER = "network"
PREPROCESSING_SEGMENTER = "network"  # its probabilities are derivatives, which are read if present
MAX_NETWORK_SPACING_MM = 1.5  # images with larger voxels are segmented by `coarse`, which is fast
MAP_KINDS = ("mean", "std", "mass")  # names of the maps in a style
OWN_PREFIX = "own_"  # of a site's maps that were measured with each scan's own probabilities
MAX_STORED_NUMBER = 1e6  # bound of effects, covariates and coordinates (mm) in a model file
MAX_OUTSIDE_FRACTION = 0.1  # of the brain mask that may lie outside the lattice of the fit
OUTLIER_DISTANCE = 2.0  # from the site's maps, as a multiple of the expected distance
SMALL_SAMPLE_FREEDOM = 8.0  # with f degrees of freedom, e^2 is raised by a factor of 1 + 8 / f
MIN_RESIDUAL_FREEDOM = 10  # degrees of freedom that a regression on covariates must leave


@dataclass(frozen=True)
class TissueMatchingConfig(Settings):
    """Settings of tissue matching.

    Attributes
    ----------
    sigma_mm : float
        Standard deviation of the Gaussian of the local statistics, 4 to 30 mm.
    step_mm : float
        Spacing of the lattice, 2 to 12 mm.
    segmenter : {"network", "coarse", "atropos"}
        Segmenter of images without known tissue probabilities; a name in `SEGMENTERS`.
    scan_variance_fraction : float
        q, the fraction of the variance within a site that is not anatomical, 0 to 1.
    covariates : tuple of str
        Age, sex and columns of participants.tsv whose effects are preserved.
    left_out_sites : {"contrast", "regional"}
        What is matched in scans of a site of which the selection of the fit took none.
    texture : {"match", "keep"}
        Whether noise and blur are matched to the target.
    """

    sigma_mm: float = setting(8.0, low=4, high=30)
    step_mm: float = setting(4.0, low=2, high=12)
    segmenter: str = setting(DEFAULT_SEGMENTER, choices=tuple(SEGMENTERS))
    scan_variance_fraction: float = setting(0.0, low=0, high=1)
    covariates: tuple[str, ...] = ("age", "sex")
    left_out_sites: str = setting("contrast", choices=("contrast", "regional"))
    texture: str = setting("match", choices=("match", "keep"))


def segment_with(segmenter: str, volume: Volume) -> np.ndarray:
    """Segment a volume with a named segmenter.

    Parameters
    ----------
    segmenter : str
        A name in `SEGMENTERS`. Images with voxels above `MAX_NETWORK_SPACING_MM` are segmented by
        ``coarse`` instead of ``network``.
    volume : Volume
        Image with a brain mask.

    Returns
    -------
    ndarray, shape (3, I, J, K)
        Tissue probabilities in the order of `TISSUES`.
    """
    return stack_probabilities(SEGMENTERS[_segmenter_for(segmenter, volume)]()(volume), volume)


def _segmenter_for(segmenter: str, volume: Volume) -> str:
    coarse = segmenter == "network" and volume.spacing.max() > MAX_NETWORK_SPACING_MM
    return "coarse" if coarse else segmenter


class TissueMatching(StatisticsBackend):
    """Match local means and standard deviations of each tissue to the target.

    Attributes
    ----------
    lattice_ : Lattice or None
        Lattice of the maps.
    covariates_ : tuple of Covariate
        Coding of the covariates, and why some are not modeled.
    effects_ : dict of Column to ndarray, shape (3, I, J, K)
        Relative change of the local means per unit of a covariate.
    covariate_means_ : dict of Column to float
        Mean of each column over the scans of the fit.
    subject_variance_ : float
        tau^2, the mean squared relative distance of scans from their site's maps; 0 if unknown.
    freedom_ : float
        Degrees of freedom of `subject_variance_`.
    pattern_variances_ : PatternVariances
        Variances of regional patterns between and within sites.
    """

    name = "tissue_matching"
    version = "4"
    reference = "local tissue matching, brain-harmonizer"
    summary = ("Local means and standard deviations of cerebrospinal fluid, gray and white matter "
               "were mapped to those of the target by smooth maps, applied to the scan's own "
               "voxels.")
    capabilities = Capabilities(intensity_map=True, tissue_statistics=True)
    by_tissue = True
    Config = TissueMatchingConfig

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.lattice_: Lattice | None = None
        self.covariates_: tuple[Covariate, ...] = ()
        self.effects_: dict[Column, np.ndarray] = {}
        self.covariate_means_: dict[Column, float] = {}
        self._reference_levels: dict[str, str] = {}  # by name of a category
        self.subject_variance_ = 0.0
        self.freedom_ = 0.0
        self.pattern_variances_ = PatternVariances()
        self._site_mean_cache: dict[str, LocalStatistics] = {}  # by prefix of the maps

    @property
    def modeled_covariates(self) -> tuple[str, ...]:
        """Covariates whose effects the fit preserves."""
        return tuple(self.config.covariates)

    def unmodeled_covariates(self, scans: tuple[Scan, ...]) -> tuple[str, ...]:
        """Describe the requested covariates that a fit on these scans cannot model."""
        coded = code_covariates(scans, self.config.covariates)
        return tuple(covariate.in_words() for covariate in coded if covariate.reason)

    @property
    def left_out_site_matching(self) -> str | None:
        """How scans of sites that the fit left out are matched: ``contrast`` or ``regional``."""
        return str(self.config.left_out_sites)

    # Fit ------------------------------------------------------------------------------------

    def _fit(self, cohort: Cohort, seed: int, progress: Progress) -> None:
        self.lattice_, self.effects_ = None, {}
        self.covariate_means_, self._reference_levels = {}, {}
        self.covariates_ = code_covariates(cohort.scans, self.config.covariates)
        own, shared, textures = self._measure_cohort(cohort, progress)
        self._fit_covariate_effects(cohort.scans, shared)
        self.styles_, self._site_mean_cache = {}, {}
        self.pattern_variances_ = PatternVariances()
        for site in cohort.sites:
            here = [n for n, scan in enumerate(cohort) if scan.site == site]
            self.styles_[site] = self._style(
                [cohort.scans[n] for n in here], [shared[n] for n in here],
                [own[n] for n in here], [textures[n] for n in here],
                _traveling_fraction(cohort, site))
        freedom = len(cohort) - len(cohort.sites)
        squares = sum(self._squared_distance(maps, scan.site, covariates_of(scan))
                      for maps, scan in zip(own, cohort))
        self.subject_variance_ = squares / freedom if freedom else 0.0
        self.freedom_ = float(freedom)
        self.pattern_variances_ = self._estimate_pattern_variances(cohort, own)

    def _estimate_pattern_variances(self, cohort: Cohort, own: list[LocalStatistics]
                                    ) -> PatternVariances:
        """Estimate variances of regional patterns; unknown with one site or one scan a site."""
        freedom, sites = len(cohort) - len(cohort.sites), len(cohort.sites)
        if not freedom or sites < 2:
            return PatternVariances()
        within = sum(
            pattern_variance(maps, self._site_maps(maps, scan.site, covariates_of(scan))[1])
            for maps, scan in zip(own, cohort)) / freedom
        mean_maps = self._mean_over_sites("")
        squares = sum(pattern_variance(_from_arrays(style), mean_maps)
                      for style in self.styles_.values())
        error = float(np.mean([style["error_variance"][0] for style in self.styles_.values()]))
        return PatternVariances(max(squares / (sites - 1) - error * within, 0.0), within)

    def _mean_over_sites(self, prefix: str) -> LocalStatistics:
        """Return the mean of all sites' maps, for average covariates; `prefix` as in a style."""
        if prefix not in self._site_mean_cache:
            self._site_mean_cache[prefix] = pool([_from_arrays(style, prefix)
                                                  for style in self.styles_.values()])[0]
        return self._site_mean_cache[prefix]

    def _measure_cohort(self, cohort: Cohort, progress: Progress
                        ) -> tuple[list[LocalStatistics], list[LocalStatistics],
                                   list[ScanTexture]]:
        """Measure all scans.

        Returns
        -------
        own, shared : list of LocalStatistics
            Maps of each scan, with its own tissue probabilities, and for traveling subjects with
            the mean over the subject's scans.
        textures : list of ScanTexture
        """
        own: dict[str, LocalStatistics] = {}
        shared: dict[str, LocalStatistics] = {}
        textures: dict[str, ScanTexture] = {}
        traveling = {scan.scan_id for scan in cohort.traveling()}
        for subject in cohort.subjects:
            mean, together = _MeanProbabilities(), []
            for scan in cohort.of_subjects([subject]):
                progress(len(own), len(cohort))
                volume = read_scan(scan)
                own[scan.scan_id], probabilities = self._segment_and_measure(
                    volume, scan.read_tissues())
                textures[scan.scan_id] = measure_texture(volume, probabilities)
                if scan.scan_id in traveling:
                    mean.add(volume, probabilities)
                    together.append(scan)
            if together and mean.one_grid:
                for scan in together:
                    volume = read_scan(scan)
                    shared[scan.scan_id] = self._measure(volume, mean.inside(volume))
        progress(len(cohort), len(cohort))
        each = [own[scan.scan_id] for scan in cohort]
        return (each, [shared.get(scan.scan_id, maps) for scan, maps in zip(cohort, each)],
                [textures[scan.scan_id] for scan in cohort])

    def _texture_of(self, scans: tuple[Scan, ...]) -> dict[str, np.ndarray]:
        return {}  # part of the style, measured with the tissues that the maps are made of

    def _summary_of(self, scan: Scan) -> dict[str, np.ndarray]:
        return _to_arrays(self._segment_and_measure(read_scan(scan), scan.read_tissues())[0])

    def _summary(self, volume: Volume) -> dict[str, np.ndarray]:
        return _to_arrays(self._segment_and_measure(volume, {})[0])

    def _segment_and_measure(self, volume: Volume, tissues: Mapping[str, np.ndarray]
                             ) -> tuple[LocalStatistics, np.ndarray]:
        """Return local statistics and probabilities; known probabilities are not recomputed."""
        known = tissues if self.config.segmenter == PREPROCESSING_SEGMENTER else {}
        probabilities = (stack_probabilities(known, volume) if known
                         else segment_with(self.config.segmenter, volume))
        return self._measure(volume, probabilities), probabilities

    def _measure(self, volume: Volume, probabilities: np.ndarray) -> LocalStatistics:
        if self.lattice_ is None:
            self.lattice_ = Lattice.around(volume, self.config.step_mm)
        return measure(volume, probabilities, self.lattice_, self.config.sigma_mm)

    def _fit_covariate_effects(self, scans: tuple[Scan, ...], maps: list[LocalStatistics]) -> None:
        """Regress local means on covariates within sites, unless the scans are too few."""
        columns, values = within_sites(scans, [c for c in self.covariates_ if not c.reason])
        sites = [scan.site for scan in scans]
        freedom = len(scans) - len(set(sites)) - len(columns)
        if not columns or freedom < MIN_RESIDUAL_FREEDOM:
            reason = (f"{len(scans)} scans of {len(set(sites))} sites leave {freedom} residual "
                      f"degrees of freedom (at least {MIN_RESIDUAL_FREEDOM} are needed)")
            self.covariates_ = tuple(c if c.reason else replace(c, reason=reason)
                                     for c in self.covariates_)
            return
        rows = np.arange(len(scans))
        centered, means = np.zeros_like(values), np.zeros((len(scans), maps[0].mean.size))
        for site in set(sites):
            here = rows[np.array(sites) == site]
            pooled, gains = pool([maps[i] for i in here])
            centered[here] = np.nan_to_num(values[here] - _column_means(values[here]))
            for i, gain in zip(here, gains):
                means[i] = (maps[i].mean / gain / pooled.mean - 1).ravel()
        scale = np.maximum(centered.std(axis=0), 1e-12)
        centered /= scale  # unit variance: the ridge below then counts as one scan
        slopes = np.linalg.solve(centered.T @ centered + np.eye(len(columns)), centered.T @ means)
        self.covariate_means_ = dict(zip(columns, _column_means(values).tolist()))
        self._reference_levels = {c.name: c.levels[0] for c in self.covariates_
                                  if c.levels and not c.reason}
        self.effects_ = {column: (slope / s).reshape(maps[0].mean.shape).astype(np.float32)
                         for column, slope, s in zip(columns, slopes, scale)}

    def _covariate_factor(self, covariates: Mapping[str, Any]) -> np.ndarray | float:
        """Return local means at these covariates over those at average covariates."""
        factor: np.ndarray | float = 1.0
        for column, effect in self.effects_.items():
            value = column.value(covariates, self._levels(column.name))
            if value is not None:
                factor = factor + effect * np.float32(value - self.covariate_means_[column])
        return np.maximum(factor, 0.5) if self.effects_ else factor

    def _levels(self, name: str) -> list[str]:
        """Return the levels of a category in the fit, reference first; empty for a number."""
        levels = [column.level for column in self.effects_ if column.name == name and column.level]
        return [self._reference_levels[name], *levels] if levels else []

    def _fit_facts(self) -> dict[str, Any]:
        return {"Covariates": [covariate.as_dict() for covariate in self.covariates_]}

    def _site_maps(self, scan_maps: LocalStatistics, site: str, covariates: Mapping[str, Any]
                   ) -> tuple[LocalStatistics, LocalStatistics]:
        """Return both sets of a site's maps, at the covariates and the gain of a scan.

        Returns
        -------
        maps, own : LocalStatistics
            With the shared probabilities of traveling subjects, and with each scan's own.
        """
        style, factor = self.styles_[site], self._covariate_factor(covariates)
        maps, own = _from_arrays(style), _from_arrays(style, OWN_PREFIX)
        own = replace(own, mean=own.mean * factor)
        gain = relative_gain(scan_maps, own)
        return replace(maps, mean=maps.mean * factor).scaled(gain), own.scaled(gain)

    def _squared_distance(self, scan_maps: LocalStatistics, site: str,
                          covariates: Mapping[str, Any]) -> float:
        """Return d^2, the mean squared relative difference of local means, mean over tissues."""
        _, own = self._site_maps(scan_maps, site, covariates)
        squares = lattice_weights(scan_maps, own) * (scan_maps.mean / own.mean - 1) ** 2
        return float(squares.sum() / len(TISSUES))

    def _style(self, scans: list[Scan], shared: list[LocalStatistics],
               own: list[LocalStatistics], textures: list[ScanTexture],
               traveling_fraction: float = 0.0) -> dict[str, np.ndarray]:
        """Average the maps of a site's scans, at average covariates.

        Parameters
        ----------
        scans, shared, own, textures
            See `_measure_cohort`.
        traveling_fraction : float
            See `_traveling_fraction`.
        """
        maps = [pool([replace(one, mean=one.mean / self._covariate_factor(covariates_of(scan)))
                      for scan, one in zip(scans, some)])[0] for some in (shared, own)]
        assert self.lattice_ is not None
        subjects = len({scan.subject for scan in scans})
        return {**_to_arrays(maps[0]), **_to_arrays(maps[1], OWN_PREFIX),
                "affine": self.lattice_.affine, "subjects": np.array([subjects], np.float64),
                "error_variance": np.array([(1 - traveling_fraction) / subjects]),
                **pool_textures(textures).arrays()}

    def _enroll(self, scans: tuple[Scan, ...]) -> Mapping[str, np.ndarray]:
        maps, textures = [], []
        for scan in scans:
            volume = read_scan(scan)
            one, probabilities = self._segment_and_measure(volume, scan.read_tissues())
            maps.append(one)
            textures.append(measure_texture(volume, probabilities))
        return self._style(list(scans), maps, maps, textures)

    def _pool(self, summaries: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return _to_arrays(pool([_from_arrays(one) for one in summaries])[0])

    def _check_style(self, style: Mapping[str, np.ndarray]) -> None:
        shape = (len(TISSUES), *(self.lattice_.shape if self.lattice_ else ()))
        for name in (prefix + kind for prefix in ("", OWN_PREFIX) for kind in MAP_KINDS):
            maps = style[name]
            low = 0.0 if name.endswith("mass") else np.finfo(np.float32).tiny
            if maps.shape != shape or not (
                    low <= float(maps.min()) <= float(maps.max()) < MAX_INTENSITY):
                raise ValueError(f"expected {name} maps of {shape}, {low:g} to {MAX_INTENSITY:g}")
        _checked_number(style, "subjects", 1.0)
        _checked_number(style, "error_variance", 0.0)
        ScanTexture.from_arrays(style)

    # Harmonize ------------------------------------------------------------------------------

    def _map(self, volume: Volume, style: Mapping[str, np.ndarray]) -> IntensityMap:
        change = self._tissue_map(volume, style, ScanContext(), False)
        return self._add_texture_change(volume, change, style)

    def _map_of(self, volume: Volume, target: Target, context: ScanContext) -> IntensityMap:
        at_target = target.kind == "site" and target.label == context.source
        change = self._tissue_map(volume, target.style, context, at_target)
        return change if at_target else self._add_texture_change(volume, change, target.style)

    def _add_texture_change(self, volume: Volume, contrast: TissueMap,
                            style: Mapping[str, np.ndarray]) -> IntensityMap:
        """Return the change of contrast, followed by that of texture if it is requested."""
        target = ScanTexture.from_arrays(style)
        if self.config.texture == "keep" or target is None:
            return contrast
        probabilities = np.zeros((len(TISSUES), *volume.shape), np.float32)
        mask = volume.require_mask()
        probabilities[:, mask] = contrast.probabilities.sample(volume.affine, mask)
        source = measure_texture(contrast.apply(volume), probabilities)
        return TexturedMap(contrast, TextureGains.between(source, target), contrast.probabilities)

    def _tissue_map(self, volume: Volume, style: Mapping[str, np.ndarray], context: ScanContext,
                    at_target: bool) -> TissueMap:
        """Return the map of contrast from a scan to a style.

        Parameters
        ----------
        volume, style, context
            Scan, arrays of the target, and facts about the scan.
        at_target : bool
            Whether the scan is of the target site.
        """
        assert self.lattice_ is not None
        site, covariates = context.source, context.covariates
        self._check_location(volume)
        scan_maps, probabilities = self._segment_and_measure(volume, context.tissues)
        factor = self._covariate_factor(covariates)
        segmenter = (PREPROCESSING_SEGMENTER
                     if context.tissues and self.config.segmenter == PREPROCESSING_SEGMENTER
                     else _segmenter_for(self.config.segmenter, volume))
        subjects, weight, source = 0, 1.0, scan_maps
        if site in self.styles_:
            subjects = int(self.styles_[site]["subjects"][0])
            error_variance = float(self.styles_[site]["error_variance"][0])
            weight = 0.0 if at_target else self._scan_weight(error_variance)
            weight = max(weight, self._outlier_weight(scan_maps, str(site), covariates, subjects))
            maps, own = self._site_maps(scan_maps, str(site), covariates)
            source = _add_deviation(maps, own, scan_maps, weight)
        mean_maps = self._mean_over_sites("" if subjects else OWN_PREFIX)
        mean_maps = replace(mean_maps, mean=mean_maps.mean * factor)
        contrast_only = self._matches_contrast_only(site)
        source = (without_pattern(source, mean_maps) if contrast_only else
                  self.pattern_variances_.shrink(source, mean_maps, weight))
        target = _from_arrays(style) if at_target else self._target_maps(style)
        target = replace(target, mean=target.mean * factor)
        facts = {"SourceWeightOfScan": round(weight, 4), "SourceSubjects": subjects,
                 "SourcePatternFraction": 0.0 if contrast_only else round(
                     self.pattern_variances_.scanner_fraction(weight), 4),
                 "Segmenter": segmenter,
                 "Covariates": list(dict.fromkeys(
                     column.name for column in self.effects_
                     if column.value(covariates, self._levels(column.name)) is not None))}
        # The std of a tissue over the brain includes its regional differences, which are kept.
        ratio = target.mean / source.mean if contrast_only else std_ratio(source, target)
        return TissueMap(self.lattice_, replace(source, mass=scan_maps.mass), target.mean, ratio,
                         TissueProbabilities.of(probabilities, volume), facts)

    def _check_location(self, volume: Volume) -> None:
        """Check that the brain lies within the lattice of the maps.

        Raises
        ------
        InputError
            If more than `MAX_OUTSIDE_FRACTION` of the mask lies outside. The image is then not
            registered, or its mask is not the brain.
        """
        assert self.lattice_ is not None
        indices = self.lattice_.indices(world_points(volume))
        top = np.array(self.lattice_.shape)[:, None] - 1
        outside = float(((indices < 0) | (indices > top)).any(axis=0).mean())
        if outside > MAX_OUTSIDE_FRACTION:
            raise InputError(
                f"expected a brain mask where the brains of the fit lie, got one with {outside:.0%}"
                f" of its voxels outside (at most {MAX_OUTSIDE_FRACTION:.0%}). Register the image "
                "to the template, and check its brain mask.")

    def _matches_contrast_only(self, site: str | None) -> bool:
        """Return whether regional differences of a site's scans are not matched."""
        return site in self.left_out_sites_ and self.config.left_out_sites == "contrast"

    def _target_maps(self, style: Mapping[str, np.ndarray]) -> LocalStatistics:
        """Return a target's maps without the part of the pattern that is probably anatomical."""
        return self.pattern_variances_.shrink(_from_arrays(style), self._mean_over_sites(""),
                                              float(style["error_variance"][0]))

    def _scan_weight(self, error_variance: float) -> float:
        """Return w, the weight of the scan's own maps in the source maps."""
        return (self.config.scan_variance_fraction + error_variance) / (1 + error_variance)

    def _outlier_weight(self, scan_maps: LocalStatistics, site: str,
                        covariates: Mapping[str, Any], subjects: int) -> float:
        """Return the smallest weight of the scan's maps; above 0 if it is far from its site's."""
        largest = self.subject_variance_ * (1 + 1 / subjects) * OUTLIER_DISTANCE ** 2
        largest *= 1 + SMALL_SAMPLE_FREEDOM / max(self.freedom_, 1.0)
        distance = self._squared_distance(scan_maps, site, covariates)
        return max(1 - largest / distance, 0.0) if largest and distance else 0.0

    def describe_model(self) -> dict[str, Any]:
        """Return whether noise and blur are matched to the target."""
        return {"Texture": self.config.texture}

    def statistics_of(self, style: Mapping[str, np.ndarray]) -> tuple[Lattice, LocalStatistics]:
        """Return the lattice and the maps to which scans are matched for a style."""
        self._check_fitted()
        assert self.lattice_ is not None
        return self.lattice_, self._target_maps(style)

    # State ----------------------------------------------------------------------------------

    def segment(self, volume: Volume) -> Mapping[str, np.ndarray]:
        """Return the (I, J, K) tissue probabilities of a volume by tissue name."""
        return dict(zip(TISSUES, segment_with(self.config.segmenter, volume)))

    def _mean_style(self, styles: list[Mapping[str, np.ndarray]], gains: np.ndarray
                    ) -> dict[str, np.ndarray]:
        maps = {prefix: pool([_from_arrays(style, prefix).scaled(float(gain))
                              for style, gain in zip(styles, gains)])[0]
                for prefix in ("", OWN_PREFIX)}
        return {**_to_arrays(maps[""]), **_to_arrays(maps[OWN_PREFIX], OWN_PREFIX),
                "affine": styles[0]["affine"],
                "subjects": np.sum([style["subjects"] for style in styles], axis=0),
                "error_variance": (np.mean([style["error_variance"] for style in styles], axis=0)
                                   / len(styles)),
                **_mean_texture(styles)}

    def _shared_state(self) -> dict[str, np.ndarray]:
        assert self.lattice_ is not None
        variances = self.pattern_variances_
        state = {"lattice_affine": self.lattice_.affine,
                 "lattice_shape": np.array(self.lattice_.shape),
                 "subject_variance": np.array([self.subject_variance_]),
                 "freedom": np.array([self.freedom_]),
                 "pattern_variances": np.array([variances.between_sites, variances.within_sites])}
        for column, effect in self.effects_.items():
            state[f"effect:{column.key}"] = effect
            state[f"mean:{column.key}"] = np.array([self.covariate_means_[column]])
        for name, level in self._reference_levels.items():
            state[f"reference:{Column(name, level).key}"] = np.array([0.0])
        return state

    def _set_shared_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.lattice_ = _lattice_of(arrays["lattice_shape"], arrays["lattice_affine"])
        self.subject_variance_ = _checked_number(arrays, "subject_variance", 0.0)
        self.freedom_ = _checked_number(arrays, "freedom", 0.0)
        self._site_mean_cache = {}
        self.pattern_variances_ = _pattern_variances_of(arrays["pattern_variances"])
        self.effects_ = {Column.from_key(key.partition(":")[2]): array
                         for key, array in arrays.items() if key.startswith("effect:")}
        self.covariate_means_ = {
            column: _checked_number(arrays, f"mean:{column.key}", -MAX_STORED_NUMBER)
            for column in self.effects_}
        references = [Column.from_key(key.partition(":")[2]) for key in arrays
                      if key.startswith("reference:")]
        self._reference_levels = {column.name: column.level for column in references}
        shape = (len(TISSUES), *self.lattice_.shape)
        for column, effect in self.effects_.items():
            if effect.shape != shape or not (np.abs(effect) < MAX_STORED_NUMBER).all():
                raise ValueError(f"expected effects of {column.name} of {shape}, "
                                 f"below {MAX_STORED_NUMBER:g}")
            if column.level and column.name not in self._reference_levels:
                raise ValueError(f"the reference level of {column.name} is missing")


def _mean_texture(styles: list[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Average the texture of sites, which a gain does not change; empty if one is unknown."""
    found = [ScanTexture.from_arrays(style) for style in styles]
    known = [one for one in found if one is not None]
    return pool_textures(known).arrays() if len(known) == len(found) else {}


def _checked_number(arrays: Mapping[str, np.ndarray], name: str, low: float) -> float:
    """Return the one number of an array; ValueError if it is none, or out of bounds."""
    array = arrays[name]
    if array.shape != (1,) or not low <= float(array[0]) <= MAX_STORED_NUMBER:
        raise ValueError(f"expected one number as {name}, {low:g} to {MAX_STORED_NUMBER:g}")
    return float(array[0])


def _pattern_variances_of(array: np.ndarray) -> PatternVariances:
    if array.shape != (2,) or not 0 <= float(array.min()) <= float(array.max()) < MAX_STORED_NUMBER:
        raise ValueError(f"expected two pattern_variances, 0 to {MAX_STORED_NUMBER:g}")
    return PatternVariances(float(array[0]), float(array[1]))


def _lattice_of(shape: np.ndarray, affine: np.ndarray) -> Lattice:
    """Return the lattice of a file; ValueError if its shape or affine is invalid."""
    if shape.shape != (3,) or shape.dtype.kind != "i" or (shape < 1).any():
        raise ValueError("lattice_shape is not three whole numbers of 1 or more")
    good = affine.shape == (4, 4) and (np.abs(affine) < MAX_STORED_NUMBER).all()
    if not good or not (affine[3] == (0, 0, 0, 1)).all() or abs(np.linalg.det(affine)) < 1e-3:
        raise ValueError("lattice_affine is not an affine matrix in mm")
    return Lattice((int(shape[0]), int(shape[1]), int(shape[2])), affine.astype(np.float64))


class _MeanProbabilities:
    """Running mean of the tissue probabilities of a subject's scans."""

    def __init__(self) -> None:
        self.total: np.ndarray | None = None
        self.affine: np.ndarray | None = None
        self.one_grid = True

    def add(self, volume: Volume, probabilities: np.ndarray) -> None:
        """Add one scan; scans on different grids have no mean."""
        if self.total is None:
            self.total, self.affine = probabilities.copy(), volume.affine
        elif (self.affine is not None and self.total.shape == probabilities.shape
              and np.allclose(self.affine, volume.affine)):
            self.total += probabilities
        else:
            self.one_grid = False

    def inside(self, volume: Volume) -> np.ndarray:
        """Return the (3, I, J, K) mean inside the mask of one of the scans."""
        assert self.total is not None
        return self.total * volume.mask / np.maximum(self.total.sum(axis=0), 1e-6)


def _add_deviation(maps: LocalStatistics, own: LocalStatistics, scan_maps: LocalStatistics,
                   weight: float) -> LocalStatistics:
    """Multiply a site's maps by `weight` times the relative deviation of a scan from its site.

    The deviation is that from `own`, which was measured as the scan was; see `_site_maps`.
    """
    part = np.float32(weight)
    return replace(maps, mean=maps.mean * (1 + part * (scan_maps.mean / own.mean - 1)),
                   std=maps.std * (1 + part * (scan_maps.std / own.std - 1)))


def _to_arrays(maps: LocalStatistics, prefix: str = "") -> dict[str, np.ndarray]:
    return {f"{prefix}{kind}": array
            for kind, array in zip(MAP_KINDS, (maps.mean, maps.std, maps.mass))}


def _from_arrays(arrays: Mapping[str, np.ndarray], prefix: str = "") -> LocalStatistics:
    """Return the maps of a style, in single precision at least, which a file need not have."""
    maps = (arrays[prefix + kind] for kind in MAP_KINDS)
    return LocalStatistics(*(array.astype(np.promote_types(array.dtype, np.float32), copy=False)
                             for array in maps))


def _traveling_fraction(cohort: Cohort, site: str) -> float:
    """Return the fraction of the other sites at which a subject of a site was scanned too.

    Returns
    -------
    float
        Mean over the subjects of the site, 0 to 1.
    """
    traveling = cohort.traveling()
    subjects_at = {other: {scan.subject for scan in traveling if scan.site == other}
                   for other in cohort.sites}
    others = [other for other in cohort.sites if other != site]
    subjects = cohort.of_site(site).subjects
    return float(np.mean([[subject in subjects_at[site] & subjects_at[other] for other in others]
                          for subject in subjects])) if others else 0.0


def _column_means(columns: np.ndarray) -> np.ndarray:
    """Return the means of columns (n_scans, n_columns) over the rows that are not NaN."""
    if np.isfinite(columns).all():
        return columns.mean(axis=0)
    return np.array([column[np.isfinite(column)].mean() if np.isfinite(column).any() else np.nan
                     for column in columns.T])
