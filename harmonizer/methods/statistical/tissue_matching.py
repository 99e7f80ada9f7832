"""Local tissue matching: each tissue, at each place, gets the brightness it has at the target.

The map is `harmonizer.contrast.tissue_map`. What is fitted of a site are local means and spreads
of CSF, GM
and WM on a lattice of 4 mm, averaged over its scans, each freed of its own gain.

**How much of a scan's own maps is replaced.** With the site's maps as the source (weight 0) the
person's regional intensities survive; with the scan's own (weight 1) everything regional becomes
the target's. A scan's map is site + person. The mean over n people of a site misses the site by
tau^2 / n, tau^2 the variance between people; a scan misses it by tau^2. The combination with the
least error, (1 - w) site + w scan, has w = 1 / (n + 1): the empirical-Bayes thought of ComBat
(Johnson, Li and Rabinovic 2007, doi:10.1093/biostatistics/kxj037), here applied to the source.
tau^2 cancels, since both errors are made of it. A share q of the variance that is no person's but
the scan's (bias field, segmentation) is to be removed: w = (q + 1/n) / (1 + 1/n). An unseen site
has n = 0 and w = 1. A scan of the target site itself has w = 0: it only gets the site's gain. A
scan that is further from its site's maps than STRANGE times what is usual among people (d^2 against
tau^2 (1 + 1/n), held larger where few people tell tau^2) was hardly scanned as the site scans:
w = 1 - STRANGE^2 tau^2 (1 + 1/n) / d^2 then, where that is more (the positive part of James and
Stein). Of what is then the site's, and of the target's maps likewise, the part of the regional
pattern that is likely to be people's is taken away (`harmonizer.methods.statistical.regional`).

**Travellers.** A segmentation errs on each scanner in its own way, and what it takes for white
matter on one is not what it takes for it on the other. Where the fit holds a person on two
scanners, that person's local means are therefore taken with one and the same shares: the mean of
those that all scans of the person have. What a new scan has beyond its site's maps is read against
maps that were made as its own are, each scan with its own shares. People who are at all sites are
no difference of sites: 1 / n is then counted with them left out (`noise`).

**Covariates.** Age, sex and named columns are regressed on within sites, place by place; site maps
are compared at the same age and sex, and a scan's person part is counted from what is usual at its
own. How categories and missing values are coded: `harmonizer.methods.statistical.covariates`.

**Sites that a fit left out.** Where the subjects of a fit are selected (controls) and a site has
none, all its scans are of subjects unlike those of the fit. Matching one of them place by place
would remove what the selection was to protect. Such a scan is taken to have the regional pattern of
the average site of the fit, and each tissue is multiplied by what brings its overall mean to the
target, unless ``left_out_sites`` asks for more.

**Texture.** After the change of contrast, noise and blur are brought nearer to the target's, band
by band (`harmonizer.contrast.texture_transfer`); `texture="keep"` leaves them as they are. A scan
of the target site itself keeps its texture.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from ...segmentation.segmentations import Segment
from ...tissues import TISSUES
from ...volume import Volume
from ..base import MAX_INTENSITY, Capabilities, Progress, ScanContext, StatisticsBackend, read_scan
from ..target import Target
from .covariates import Column, Covariate, code_covariates, covariates_of, within_sites
from .regional import Regional, mean_square, place_weights, without_pattern

__all__ = ["TissueMatching", "TissueMatchingConfig", "SEGMENTERS", "DEFAULT_SEGMENTER",
           "segment_with"]


def _atropos() -> Segment:
    return AtroposSegmenter(own_grid=True)


def _network() -> Segment:
    from ...segmentation.predict import NetworkSegmenter

    return NetworkSegmenter()


SEGMENTERS = {"network": _network, "coarse": CoarseSegmenter, "atropos": _atropos}
DEFAULT_SEGMENTER = "network"
GIVEN = "network"  # the segmenter whose answers the preprocess stage writes, to be taken from there
LARGE = 1e6  # of what a file may claim: effects, covariates, millimetres
COARSE_MM = 1.5  # voxels above it are not worth the network's time: `coarse` takes its place
SEEN = "seen_"  # prefix of a site's maps with each scan's own shares, where they are not shared
MAX_OUTSIDE_FRACTION = 0.1  # of a brain mask, outside the lattice of the fit
STRANGE = 2.0  # times the usual distance of a person from the site's maps
FEW = 8.0  # a usual distance known from f degrees of freedom is held 1 + FEW / f times as large
TEXTURES = ("match", "keep")  # what may be done about noise and blur
LEAST_FREEDOM = 10  # residual degrees of freedom below which no covariate is modelled


@dataclass(frozen=True)
class TissueMatchingConfig:
    """Settings.

    `sigma_mm`: of the Gaussian, 4 to 30; `step_mm` of the lattice, 2 to 12; `segmenter`: a name in
    `SEGMENTERS`; `scan_share`: q, the share of the differences within a site that is no person's,
    0 to 1; `covariates`: age, sex and columns whose effects are kept; `left_out_sites`: how scans
    of a site that the selection of a fit left out are matched, ``contrast`` or ``regional``;
    `texture`: ``match`` brings noise and blur nearer to the target's, ``keep`` leaves them.
    """

    sigma_mm: float = 8.0
    step_mm: float = 4.0
    segmenter: str = DEFAULT_SEGMENTER
    scan_share: float = 0.0
    covariates: tuple[str, ...] = ("age", "sex")
    left_out_sites: str = "contrast"
    texture: str = "match"

    def __post_init__(self) -> None:
        for name, low, high in (("sigma_mm", 4, 30), ("step_mm", 2, 12), ("scan_share", 0, 1)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must lie between {low} and {high}, "
                                 f"got {getattr(self, name)}.")
        if self.segmenter not in SEGMENTERS:
            raise ValueError(f"segmenter must be one of {tuple(SEGMENTERS)}, "
                             f"got {self.segmenter!r}.")
        if self.left_out_sites not in ("contrast", "regional"):
            raise ValueError("left_out_sites must be contrast or regional, "
                             f"got {self.left_out_sites!r}.")
        if self.texture not in TEXTURES:
            raise ValueError(f"texture must be one of {TEXTURES}, got {self.texture!r}.")


def segment_with(segmenter: str, volume: Volume) -> np.ndarray:
    """(3, I, J, K) memberships of a volume by the named segmenter; see `COARSE_MM`."""
    return stack_probabilities(SEGMENTERS[_used(segmenter, volume)]()(volume), volume)


def _used(segmenter: str, volume: Volume) -> str:
    coarse = segmenter == "network" and volume.spacing.max() > COARSE_MM
    return "coarse" if coarse else segmenter


class TissueMatching(StatisticsBackend):
    """Corrects contrast, bias field and regional differences at once; keeps what is finer."""

    name = "tissue_matching"
    version = "3"
    reference = "local tissue matching, this project (docs/benchmarks.md)"
    summary = ("Local means and spreads of cerebrospinal fluid, grey and white matter were mapped "
               "to those of the target by smooth maps, applied to the scan's own voxels.")
    capabilities = Capabilities(intensity_map=True, tissue_statistics=True)
    by_tissue = True
    Config = TissueMatchingConfig

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.lattice_: Lattice | None = None
        self.covariates_: tuple[Covariate, ...] = ()
        self.effects_: dict[Column, np.ndarray] = {}
        self.centres_: dict[Column, float] = {}
        self._references: dict[str, str] = {}  # category -> its reference level
        self.between_ = 0.0  # tau^2: mean square relative distance of people; 0: not known
        self.freedom_ = 0.0  # degrees of freedom that it rests on
        self.regional_ = Regional()
        self._usual_of: dict[str, LocalStatistics] = {}  # of the sites, by kind; made when needed

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
        self.lattice_, self.effects_, self.centres_, self._references = None, {}, {}, {}
        self.covariates_ = code_covariates(cohort.scans, self.config.covariates)
        alone, common, textures = self._both_ways(cohort, progress)
        self._learn_effects(cohort.scans, common)
        self.styles_, self._usual_of, self.regional_ = {}, {}, Regional()
        for site in cohort.sites:
            here = [n for n, scan in enumerate(cohort) if scan.site == site]
            scans = [cohort.scans[n] for n in here]
            self.styles_[site] = self._style(scans, [common[n] for n in here],
                                             [alone[n] for n in here], [textures[n] for n in here],
                                             _shared_people(cohort, site))
        freedom = len(cohort) - len(cohort.sites)
        squares = sum(self._distance(one, scan.site, covariates_of(scan))
                      for one, scan in zip(alone, cohort))
        self.between_ = squares / freedom if freedom else 0.0
        self.freedom_ = float(freedom)
        self.regional_ = self._regional(cohort, alone)

    def _regional(self, cohort: Cohort, alone: list[LocalStatistics]) -> Regional:
        """Variances of regional patterns; nothing where sites or people are too few to tell."""
        freedom, sites = len(cohort) - len(cohort.sites), len(cohort.sites)
        if not freedom or sites < 2:
            return Regional()
        within = sum(mean_square(one, self._site_as_scanned(one, scan.site, covariates_of(scan))[1])
                     for one, scan in zip(alone, cohort)) / freedom
        usual = self._usual("")
        apart = sum(mean_square(_statistics(style), usual) for style in self.styles_.values())
        noise = float(np.mean([style["noise"][0] for style in self.styles_.values()]))
        return Regional(max(apart / (sites - 1) - noise * within, 0.0), within)

    def _usual(self, kind: str) -> LocalStatistics:
        """The mean of all sites' maps, as of the average person; `kind` as in a style."""
        if kind not in self._usual_of:
            self._usual_of[kind] = pool([_statistics(style, kind)
                                         for style in self.styles_.values()])[0]
        return self._usual_of[kind]

    def _both_ways(self, cohort: Cohort, progress: Progress
                   ) -> tuple[list[LocalStatistics], list[LocalStatistics], list[ScanTexture]]:
        """Of each scan: its statistics with its own shares, with those of its person, its texture.
        """
        alone, common, textures = {}, {}, {}
        traveling = {scan.scan_id for scan in cohort.traveling()}
        for subject in cohort.subjects:
            shared, together = _Shared(), []
            for scan in cohort.of_subjects([subject]):
                progress(len(alone), len(cohort))
                volume = read_scan(scan)
                alone[scan.scan_id], shares = self._measured(volume, scan.read_tissues())
                textures[scan.scan_id] = measure_texture(volume, shares)
                if scan.scan_id in traveling:
                    shared.add(volume, shares)
                    together.append(scan)
            if together and shared.one_grid:
                for scan in together:
                    volume = read_scan(scan)
                    common[scan.scan_id] = self._measure(volume, shared.inside(volume))
        progress(len(cohort), len(cohort))
        each = [alone[scan.scan_id] for scan in cohort]
        return (each, [common.get(scan.scan_id, one) for scan, one in zip(cohort, each)],
                [textures[scan.scan_id] for scan in cohort])

    def _texture_of(self, scans: tuple[Scan, ...]) -> dict[str, np.ndarray]:
        return {}  # part of the style, measured with the tissues that the maps are made of

    def _summary_of(self, scan: Scan) -> dict[str, np.ndarray]:
        return _arrays(self._measured(read_scan(scan), scan.read_tissues())[0])

    def _summary(self, volume: Volume) -> dict[str, np.ndarray]:
        return _arrays(self._measured(volume, {})[0])

    def _measured(self, volume: Volume, tissues: Mapping[str, np.ndarray]
                  ) -> tuple[LocalStatistics, np.ndarray]:
        """(local statistics, memberships) of one image; known shares are taken, not sought."""
        known = tissues if self.config.segmenter == GIVEN else {}
        shares = (stack_probabilities(known, volume) if known
                  else segment_with(self.config.segmenter, volume))
        return self._measure(volume, shares), shares

    def _measure(self, volume: Volume, shares: np.ndarray) -> LocalStatistics:
        if self.lattice_ is None:
            self.lattice_ = Lattice.around(volume, self.config.step_mm)
        return measure(volume, shares, self.lattice_, self.config.sigma_mm)

    def _learn_effects(self, scans: tuple[Scan, ...], found: list[LocalStatistics]) -> None:
        """Slopes of the local means on covariates, within sites; none where data are few."""
        names, columns = within_sites(scans, [c for c in self.covariates_ if not c.reason])
        sites = [scan.site for scan in scans]
        freedom = len(scans) - len(set(sites)) - len(names)
        if not names or freedom < LEAST_FREEDOM:
            why = (f"{len(scans)} scans of {len(set(sites))} sites leave {freedom} residual "
                   f"degrees of freedom, and {LEAST_FREEDOM} are needed")
            self.covariates_ = tuple(c if c.reason else replace(c, reason=why)
                                     for c in self.covariates_)
            return
        rows = np.arange(len(scans))
        inner, means = np.zeros_like(columns), np.zeros((len(scans), found[0].mean.size))
        for site in set(sites):
            here = rows[np.array(sites) == site]
            pooled, gains = pool([found[i] for i in here])
            inner[here] = np.nan_to_num(columns[here] - _mean_of_known(columns[here]))
            for i, gain in zip(here, gains):
                means[i] = (found[i].mean / gain / pooled.mean - 1).ravel()
        scale = np.maximum(inner.std(axis=0), 1e-12)
        inner /= scale  # one standard deviation; the ridge is worth one scan
        slopes = np.linalg.solve(inner.T @ inner + np.eye(len(names)), inner.T @ means)
        self.centres_ = dict(zip(names, _mean_of_known(columns).tolist()))
        self._references = {c.name: c.levels[0] for c in self.covariates_
                            if c.levels and not c.reason}
        self.effects_ = {name: (slope / s).reshape(found[0].mean.shape).astype(np.float32)
                         for name, slope, s in zip(names, slopes, scale)}

    def _expected(self, covariates: Mapping[str, Any]) -> np.ndarray | float:
        """Local means of such a person over those of the average person; 1 without covariates."""
        factor: np.ndarray | float = 1.0
        for column, effect in self.effects_.items():
            value = column.value(covariates, self._levels(column.name))
            if value is not None:
                factor = factor + effect * np.float32(value - self.centres_[column])
        return np.maximum(factor, 0.5) if self.effects_ else factor

    def _levels(self, name: str) -> list[str]:
        """Levels of a category that were in the fit, the reference first; none of a number."""
        levels = [column.level for column in self.effects_ if column.name == name and column.level]
        return [self._references[name], *levels] if levels else []

    def _fit_facts(self) -> dict[str, Any]:
        return {"Covariates": [covariate.as_dict() for covariate in self.covariates_]}

    def _site_as_scanned(self, own: LocalStatistics, source: str, covariates: Mapping[str, Any]
                         ) -> tuple[LocalStatistics, LocalStatistics]:
        """A site's maps for such a person and with the gain of this scan: as they are, and as seen.
        """
        style, usual = self.styles_[source], self._expected(covariates)
        site, seen = _statistics(style), _statistics(style, SEEN)
        seen = replace(seen, mean=seen.mean * usual)
        gain = relative_gain(own, seen)
        return replace(site, mean=site.mean * usual).scaled(gain), seen.scaled(gain)

    def _distance(self, own: LocalStatistics, source: str, covariates: Mapping[str, Any]) -> float:
        """d^2: mean square of the relative difference of local means, tissues counting alike."""
        _, site = self._site_as_scanned(own, source, covariates)
        apart = place_weights(own, site) * (own.mean / site.mean - 1) ** 2
        return float(apart.sum() / len(TISSUES))

    def _style(self, scans: list[Scan], found: list[LocalStatistics],
               seen: list[LocalStatistics], textures: list[ScanTexture], shared: float = 0.0
               ) -> dict[str, np.ndarray]:
        """A site's maps, as of the average person; `seen` with each scan's own shares.

        `shared` of its people are at the other sites, too.
        """
        maps = [pool([replace(one, mean=one.mean / self._expected(covariates_of(scan)))
                      for scan, one in zip(scans, some)])[0] for some in (found, seen)]
        assert self.lattice_ is not None
        people = len({scan.subject for scan in scans})
        return {**_arrays(maps[0]), **_arrays(maps[1], SEEN), "affine": self.lattice_.affine,
                "people": np.array([people], np.float64),
                "noise": np.array([(1 - shared) / people]),
                **pool_textures(textures).arrays()}

    def _enroll(self, scans: tuple[Scan, ...]) -> Mapping[str, np.ndarray]:
        found, textures = [], []
        for scan in scans:
            volume = read_scan(scan)
            one, shares = self._measured(volume, scan.read_tissues())
            found.append(one)
            textures.append(measure_texture(volume, shares))
        return self._style(list(scans), found, found, textures)

    def _pool(self, summaries: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return _arrays(pool([_statistics(one) for one in summaries])[0])

    def _check_style(self, style: Mapping[str, np.ndarray]) -> None:
        shape = (len(TISSUES), *(self.lattice_.shape if self.lattice_ else ()))
        for name in (kind + part for kind in ("", SEEN) for part in ("mean", "spread", "mass")):
            maps = style[name]
            low = 0.0 if name.endswith("mass") else np.finfo(np.float32).tiny
            if maps.shape != shape or not (
                    low <= float(maps.min()) <= float(maps.max()) < MAX_INTENSITY):
                raise ValueError(f"expected {name} maps of {shape}, {low:g} to {MAX_INTENSITY:g}")
        _number_of(style, "people", 1.0)
        _number_of(style, "noise", 0.0)
        ScanTexture.from_arrays(style)

    # Harmonize ------------------------------------------------------------------------------

    def _map(self, volume: Volume, style: Mapping[str, np.ndarray]) -> IntensityMap:
        change = self._tissue_map(volume, style, ScanContext(), False)
        return self._textured(volume, change, style)

    def _map_of(self, volume: Volume, target: Target, context: ScanContext) -> IntensityMap:
        same = target.kind == "site" and target.label == context.source
        change = self._tissue_map(volume, target.style, context, same)
        return change if same else self._textured(volume, change, target.style)

    def _textured(self, volume: Volume, contrast: TissueMap, style: Mapping[str, np.ndarray]
                  ) -> IntensityMap:
        """Return the change of contrast followed by that of texture, where one is asked for."""
        target = ScanTexture.from_arrays(style)
        if self.config.texture == "keep" or target is None:
            return contrast
        probabilities = np.zeros((len(TISSUES), *volume.shape), np.float32)
        probabilities[:, volume.mask] = contrast.probabilities.sample(volume.affine, volume.mask)
        source = measure_texture(contrast.apply(volume), probabilities)
        return TexturedMap(contrast, TextureGains.between(source, target), contrast.probabilities)

    def _tissue_map(self, volume: Volume, style: Mapping[str, np.ndarray], context: ScanContext,
                    same: bool) -> TissueMap:
        assert self.lattice_ is not None
        source, covariates = context.source, context.covariates
        self._check_place(volume)
        own, shares = self._measured(volume, context.tissues)
        usual = self._expected(covariates)
        given = bool(context.tissues) and self.config.segmenter == GIVEN
        people, weight, before = 0, 1.0, own
        if source in self.styles_:
            people, noise = (int(self.styles_[source]["people"][0]),
                             float(self.styles_[source]["noise"][0]))
            weight = 0.0 if same else self._weight(noise)
            weight = max(weight, self._strangeness(own, str(source), covariates, people))
            site, seen = self._site_as_scanned(own, str(source), covariates)
            before = _with_persons_part(site, seen, own, weight)
        all_sites = self._usual("" if people else SEEN)
        all_sites = replace(all_sites, mean=all_sites.mean * usual)
        contrast_only = self._gets_contrast_only(source)
        before = (without_pattern(before, all_sites) if contrast_only else
                  self.regional_.freed(before, all_sites, weight))
        goal = _statistics(style) if same else self._goal(style)
        goal = replace(goal, mean=goal.mean * usual)
        facts = {"SourceWeightOfScan": round(weight, 4), "SourcePeople": people,
                 "SourcePatternKept": 0.0 if contrast_only else round(
                     self.regional_.kept(weight), 4),
                 "Segmenter": GIVEN if given else _used(self.config.segmenter, volume),
                 "Covariates": list(dict.fromkeys(
                     column.name for column in self.effects_
                     if column.value(covariates, self._levels(column.name)) is not None))}
        # A tissue's std about its overall mean holds the regional differences: not matched either.
        ratio = goal.mean / before.mean if contrast_only else std_ratio(before, goal)
        return TissueMap(self.lattice_, replace(before, mass=own.mass), goal.mean, ratio,
                         TissueProbabilities.of(shares, volume), facts)

    def _check_place(self, volume: Volume) -> None:
        """The brain must lie where the brains of the fit do: within the lattice of the maps.

        Raises
        ------
        InputError
            If more than `MAX_OUTSIDE_FRACTION` of the mask lies outside; the image is then not
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
                "to the template, and look at its brain mask.")

    def _gets_contrast_only(self, source: str | None) -> bool:
        """Whether a scan of this site is not matched place by place; see the module's docstring."""
        return source in self.left_out_sites_ and self.config.left_out_sites == "contrast"

    def _goal(self, style: Mapping[str, np.ndarray]) -> LocalStatistics:
        """A target's maps, with what is likely to be its people's taken away."""
        return self.regional_.freed(_statistics(style), self._usual(""), float(style["noise"][0]))

    def _weight(self, noise: float) -> float:
        """w of a site whose maps err by this share of the variance between people."""
        return (self.config.scan_share + noise) / (1 + noise)

    def _strangeness(self, own: LocalStatistics, source: str, covariates: Mapping[str, Any],
                     people: int) -> float:
        """w that the scan's distance from its site asks for; 0 for a usual one."""
        usual = self.between_ * (1 + 1 / people) * STRANGE ** 2
        usual *= 1 + FEW / max(self.freedom_, 1.0)
        distance = self._distance(own, source, covariates)
        return max(1 - usual / distance, 0.0) if usual and distance else 0.0

    def describe_model(self) -> dict[str, Any]:
        """Whether noise and blur are brought nearer to the target's."""
        return {"Texture": self.config.texture}

    def statistics_of(self, style: Mapping[str, np.ndarray]) -> tuple[Lattice, LocalStatistics]:
        """What a target's or a site's style says of the tissues, and where its maps lie."""
        self._check_fitted()
        assert self.lattice_ is not None
        return self.lattice_, self._goal(style)

    # State ----------------------------------------------------------------------------------

    def segment(self, volume: Volume) -> Mapping[str, np.ndarray]:
        return dict(zip(TISSUES, segment_with(self.config.segmenter, volume)))

    def _mean_style(self, styles: list[Mapping[str, np.ndarray]], gains: np.ndarray
                    ) -> dict[str, np.ndarray]:
        found = {kind: pool([_statistics(style, kind).scaled(float(gain))
                             for style, gain in zip(styles, gains)])[0] for kind in ("", SEEN)}
        return {**_arrays(found[""]), **_arrays(found[SEEN], SEEN), "affine": styles[0]["affine"],
                "people": np.sum([style["people"] for style in styles], axis=0),
                "noise": np.mean([style["noise"] for style in styles], axis=0) / len(styles),
                **_mixed_texture(styles)}

    def _shared_state(self) -> dict[str, np.ndarray]:
        assert self.lattice_ is not None
        shared = {"lattice_affine": self.lattice_.affine,
                  "lattice_shape": np.array(self.lattice_.shape),
                  "between": np.array([self.between_]), "freedom": np.array([self.freedom_]),
                  "regional": np.array([self.regional_.between, self.regional_.within])}
        for column, effect in self.effects_.items():
            shared[f"effect:{column.key}"] = effect
            shared[f"centre:{column.key}"] = np.array([self.centres_[column]])
        for name, level in self._references.items():
            shared[f"reference:{Column(name, level).key}"] = np.array([0.0])
        return shared

    def _set_shared_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.lattice_ = _lattice_of(arrays["lattice_shape"], arrays["lattice_affine"])
        self.between_ = _number_of(arrays, "between", 0.0)
        self.freedom_ = _number_of(arrays, "freedom", 0.0)
        self._usual_of, self.regional_ = {}, _regional_of(arrays["regional"])
        self.effects_ = {Column.from_key(key.partition(":")[2]): array
                         for key, array in arrays.items() if key.startswith("effect:")}
        self.centres_ = {column: _number_of(arrays, f"centre:{column.key}", -LARGE)
                         for column in self.effects_}
        references = [Column.from_key(key.partition(":")[2]) for key in arrays
                      if key.startswith("reference:")]
        self._references = {column.name: column.level for column in references}
        shape = (len(TISSUES), *self.lattice_.shape)
        for column, effect in self.effects_.items():
            if effect.shape != shape or not (np.abs(effect) < LARGE).all():
                raise ValueError(f"expected effects of {column.name} of {shape}, below {LARGE:g}")
            if column.level and column.name not in self._references:
                raise ValueError(f"the reference level of {column.name} is not there")


def _mixed_texture(styles: list[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The mean of sites' texture numbers; a gain does not move them."""
    found = [ScanTexture.from_arrays(style) for style in styles]
    known = [one for one in found if one is not None]
    return pool_textures(known).arrays() if len(known) == len(found) else {}


def _number_of(arrays: Mapping[str, np.ndarray], name: str, low: float) -> float:
    """The one number of an array, from `low` to `LARGE`; ValueError if it is none."""
    array = arrays[name]
    if array.shape != (1,) or not low <= float(array[0]) <= LARGE:
        raise ValueError(f"expected one number as {name}, {low:g} to {LARGE:g}")
    return float(array[0])


def _regional_of(array: np.ndarray) -> Regional:
    if array.shape != (2,) or not 0 <= float(array.min()) <= float(array.max()) < LARGE:
        raise ValueError(f"expected two variances as regional, 0 to {LARGE:g}")
    return Regional(float(array[0]), float(array[1]))


def _lattice_of(shape: np.ndarray, affine: np.ndarray) -> Lattice:
    """The lattice of a file; ValueError if its points lie nowhere."""
    if shape.shape != (3,) or shape.dtype.kind != "i" or (shape < 1).any():
        raise ValueError("lattice_shape is not three whole numbers of 1 or more")
    good = affine.shape == (4, 4) and (np.abs(affine) < LARGE).all()
    if not good or not (affine[3] == (0, 0, 0, 1)).all() or abs(np.linalg.det(affine)) < 1e-3:
        raise ValueError("lattice_affine is no matrix from points to millimetres")
    return Lattice((int(shape[0]), int(shape[1]), int(shape[2])), affine.astype(np.float64))


class _Shared:
    """The mean of the shares that a person's scans were found to have."""

    def __init__(self) -> None:
        self.total: np.ndarray | None = None
        self.affine: np.ndarray | None = None
        self.one_grid = True

    def add(self, volume: Volume, shares: np.ndarray) -> None:
        """One scan more; scans on different grids have no mean."""
        if self.total is None:
            self.total, self.affine = shares.copy(), volume.affine
        elif self.total.shape == shares.shape and np.allclose(self.affine, volume.affine):
            self.total += shares
        else:
            self.one_grid = False

    def inside(self, volume: Volume) -> np.ndarray:
        """(3, I, J, K) in the mask of one of the scans."""
        assert self.total is not None
        return self.total * volume.mask / np.maximum(self.total.sum(axis=0), 1e-6)


def _with_persons_part(site: LocalStatistics, seen: LocalStatistics, own: LocalStatistics,
                       weight: float) -> LocalStatistics:
    """A site's maps times `weight` of what one scan has beyond them, both seen in the same way."""
    part = np.float32(weight)
    return replace(site, mean=site.mean * (1 + part * (own.mean / seen.mean - 1)),
                   std=site.std * (1 + part * (own.std / seen.std - 1)))


def _arrays(one: LocalStatistics, kind: str = "") -> dict[str, np.ndarray]:
    return {f"{kind}mean": one.mean, f"{kind}spread": one.std, f"{kind}mass": one.mass}


def _statistics(arrays: Mapping[str, np.ndarray], kind: str = "") -> LocalStatistics:
    """Of a style; in single precision or more, which a file need not have."""
    parts = (arrays[kind + part] for part in ("mean", "spread", "mass"))
    return LocalStatistics(*(a.astype(np.promote_types(a.dtype, np.float32), copy=False)
                             for a in parts))


def _shared_people(cohort: Cohort, site: str) -> float:
    """0..1: how many of the other sites a person of this site was scanned at, on average."""
    traveling = cohort.traveling()
    at = {other: {scan.subject for scan in traveling if scan.site == other}
          for other in cohort.sites}
    others = [other for other in cohort.sites if other != site]
    mine = cohort.of_site(site).subjects
    return float(np.mean([[person in at[site] & at[other] for other in others]
                          for person in mine])) if others else 0.0


def _mean_of_known(columns: np.ndarray) -> np.ndarray:
    """(columns,) means over the rows (n, columns) that are not NaN."""
    if np.isfinite(columns).all():
        return columns.mean(axis=0)
    return np.array([column[np.isfinite(column)].mean() if np.isfinite(column).any() else np.nan
                     for column in columns.T])
