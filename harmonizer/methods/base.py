"""Interface of harmonization methods: fit, harmonize, enroll, save and load.

* `Backend.fit(cohort)` learns the properties of scanners from preprocessed scans.
* `harmonize(volume, target)` gives an image the contrast of a target.
* `enroll(scans)` makes a target from scans that were not in the fit.
* `save(folder)` and `load(folder)` store a fitted model.

The base class checks what every method guarantees: finite input with a mask, unchanged background
and geometry, and no new negative or NaN voxels. Equal input and seed give equal bits.

A method implements `Config`, `_fit`, `_enroll`, `_harmonize`, `_site_style`, `_state` and
`_set_state`. A method that describes a scanner by a few numbers derives from `StatisticsBackend`
and implements three methods.
"""

from __future__ import annotations

import dataclasses
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np

from ..cohort import Cohort, Scan
from ..contrast.intensity_map import IntensityMap
from ..contrast.local_statistics import stack_probabilities
from ..contrast.texture import ScanTexture, measure_texture, pool_textures
from ..errors import InputError, InternalError, UnavailableError, UsageError, did_you_mean
from ..volume import AFFINE_TOLERANCE_MM, Volume, load_nifti, same_grid
from . import model_folder
from .config import check_types, is_texts, split_texts
from .target import Target

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Capabilities", "ScanContext", "HarmonizationResult", "Backend", "StatisticsBackend",
           "check_volume", "read_scan", "MAX_INTENSITY", "SCANNER_FREE"]

SCANNER_FREE: Final = "scanner-free"
MAX_INTENSITY = 1e30  # beyond it, float32 arithmetic would overflow
MAX_SITE_CARD_SCANS = 20
SITE_TEXTURE = "texture:"  # prefix of the texture numbers of sites in a model

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Capabilities:
    """Features of a backend; callers check them instead of the class, and tests verify them.

    Attributes
    ----------
    reference_target : bool
        Can enroll reference scans as a target.
    scanner_free : bool
        Has a target that is no scanner.
    intensity_map : bool
        Its change is an `IntensityMap`, which can be applied on the subject's own grid.
    tissue_statistics : bool
        Describes a site by local statistics of the tissues (`TissueMatching.statistics_of`).
    trained : bool
        The fit trains networks (minutes to days; benefits from a GPU).
    modalities : bool
        One set of networks can be trained on several modalities (`fit_together`).
    """

    reference_target: bool = True
    scanner_free: bool = False
    intensity_map: bool = False
    tissue_statistics: bool = False
    trained: bool = False
    modalities: bool = False


@dataclass(frozen=True)
class ScanContext:
    """Facts about a scan besides its image.

    Attributes
    ----------
    source : str, optional
        Site label; may be a site that was not in the fit.
    covariates : mapping
        Covariates of the subject (``age``, ``sex``, columns of participants.tsv).
    tissues : mapping of str to ndarray, shape (I, J, K)
        Tissue probabilities, if they are known; otherwise a method segments the image.
    modality : str, optional
        BIDS suffix.
    """

    source: str | None = None
    covariates: Mapping[str, Any] = field(default_factory=dict)
    tissues: Mapping[str, np.ndarray] = field(default_factory=dict)
    modality: str | None = None


@dataclass(frozen=True, eq=False)
class HarmonizationResult:
    """Harmonized image, and its uncertainty if the method samples several.

    Attributes
    ----------
    volume : Volume
        The harmonized image.
    uncertainty : ndarray, shape (I, J, K), float32, optional
        Standard deviation over the samples, in the image's intensity unit.
    """

    volume: Volume
    uncertainty: np.ndarray | None = None


class Backend(ABC):
    """Harmonization method; the constructor stores its config and computes nothing.

    Parameters
    ----------
    config : Config, optional
        Settings of the method. Default: `Config()`.

    Attributes
    ----------
    name, version : str
        Identify the method in model folders and sidecars.
    reference : str
        Citation of the method: authors, year, DOI.
    summary : str
        One sentence for the methods text, in the past tense.
    capabilities : Capabilities
        What the method can do.
    uses_location : bool
        Whether a change depends on a voxel's location; False for maps of intensities alone.
    Config : type
        Frozen dataclass of settings; every field has a default.
    modality_ : str or None
        Modality of the fit.
    sites_ : dict of str to int
        Number of scans of each site of the fit.
    left_out_sites_ : tuple of str
        Sites with scans of which the selection of the fit took none; set it before `fit`.
    left_out_scans_ : dict of str to str
        Scan -> why it was not used; set it before `fit`, which notes it in the model.
    """

    name: ClassVar[str]
    version: ClassVar[str] = "1"
    reference: ClassVar[str]
    summary: ClassVar[str]
    capabilities: ClassVar[Capabilities]
    Config: ClassVar[type]
    uses_location: ClassVar[bool] = True

    def __init__(self, config: Any = None) -> None:
        self.config = self.Config() if config is None else config
        self.modality_: str | None = None
        self.sites_: dict[str, int] = {}
        self.cohort_: dict[str, Any] = {}
        self.left_out_sites_: tuple[str, ...] = ()
        self.left_out_scans_: dict[str, str] = {}
        self.textures_: dict[str, dict[str, np.ndarray]] = {}

    @property
    def region(self) -> str:
        """Which masks the method needs, in the fit and later: ``brain`` or ``head``."""
        return "brain"

    @property
    def modeled_covariates(self) -> tuple[str, ...]:
        """Covariates whose effects the fit preserves; empty if the method has none."""
        return ()

    def unmodeled_covariates(self, scans: tuple[Scan, ...]) -> tuple[str, ...]:
        """Describe the requested covariates that a fit on these scans cannot model.

        Parameters
        ----------
        scans : tuple of Scan
            Scans of the fit; images are not read.

        Returns
        -------
        tuple of str
            One phrase for each covariate, with the reason.
        """
        return ()

    @property
    def left_out_site_matching(self) -> str | None:
        """How scans of sites that the fit left out are matched: ``contrast`` or ``regional``.

        None if the method treats them as scans of an unseen scanner.
        """
        return None

    def differing_options(self, options: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Compare options with those of this model.

        Parameters
        ----------
        options : mapping of str to object
            Options as in `config_from`.

        Returns
        -------
        dict of str to tuple
            Name -> (requested, fitted) of options that differ.

        Raises
        ------
        UsageError
            If a name is unknown or a value is invalid.
        """
        requested = self.config_from(options)
        pairs = {name: (getattr(requested, name), getattr(self.config, name)) for name in options}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    def check_settings_files(self) -> None:
        """Check the files that the config names before a long fit; `InputError` if invalid."""

    # Public interface -----------------------------------------------------------------------

    def fit(self, cohort: Cohort, *, seed: int = 0, progress: Progress | None = None) -> Self:
        """Learn the properties of the scanners of a cohort.

        Parameters
        ----------
        cohort : Cohort
            Preprocessed scans of one modality on the template grid, with masks.
        seed : int
            Seed of all random draws.
        progress : callable, optional
            Called with (done, total).

        Returns
        -------
        Backend
            Itself.

        Raises
        ------
        InputError
            If the cohort is empty, holds several modalities, its images are not on one grid (see
            `Cohort.require_one_grid`), or a scan cannot be used.
        """
        modalities = sorted({scan.modality for scan in cohort})
        if len(modalities) != 1:
            raise InputError(
                f"fit expects scans of one modality, got {', '.join(modalities) or 'no scans'}. "
                "Harmonize each modality separately."
            )
        cohort.require_one_grid()
        self._fit(cohort, seed, progress or (lambda done, total: None))
        self._record_cohort(cohort)
        return self

    def _record_cohort(self, cohort: Cohort) -> None:
        """Store modality, sites, texture and description of the cohort, and what was left out."""
        self.modality_, self.sites_ = cohort.scans[0].modality, cohort.sites
        self.textures_ = {site: found for site in cohort.sites
                          if (found := self._texture_of(cohort.of_site(site).scans))}
        self.cohort_ = {**model_folder.describe_cohort(cohort),
                        **model_folder.describe_left_out(self), **self._fit_facts()}

    def _fit_facts(self) -> dict[str, Any]:
        """Return facts about the fit for cohort.json and the card; JSON types."""
        return {}

    def _texture_of(self, scans: tuple[Scan, ...]) -> dict[str, np.ndarray]:
        """Return noise, blur and band energies of scans with tissue maps, for a site card."""
        known = []
        for scan in scans:
            if scan.tissues:
                volume = scan.read()
                maps = stack_probabilities(scan.read_tissues(), volume)
                known.append(measure_texture(volume, maps))
        return pool_textures(known).arrays() if known else {}

    def harmonize(
        self, volume: Volume, target: Target, *, source: str | None = None, seed: int = 0,
        covariates: Mapping[str, Any] | None = None,
        tissues: Mapping[str, np.ndarray] | None = None,
    ) -> Volume:
        """Harmonize an image to a target; a pure function of its arguments.

        See `harmonize_with_uncertainty`, whose volume this returns.
        """
        return self.harmonize_with_uncertainty(
            volume, target, source=source, seed=seed, covariates=covariates, tissues=tissues
        ).volume

    def harmonize_with_uncertainty(
        self, volume: Volume, target: Target, *, source: str | None = None, seed: int = 0,
        covariates: Mapping[str, Any] | None = None,
        tissues: Mapping[str, np.ndarray] | None = None,
        checkpoint_folder: Path | None = None,
    ) -> HarmonizationResult:
        """Harmonize an image to a target, with the uncertainty map of a sampling method.

        Parameters
        ----------
        volume : Volume
            Template-grid image with a brain mask, in any intensity unit.
        target : Target
            Made by this model's `target` or `enroll`.
        source, covariates, tissues
            See `ScanContext`.
        seed : int
            Seed of all random draws.
        checkpoint_folder : Path, optional
            Where a slow method saves its progress within a volume. One folder belongs to one call:
            same model, target, seed, scan and device.

        Returns
        -------
        HarmonizationResult
            The volume has the same grid and mask (the same objects); voxels outside the mask are
            those of the input. An image that is constant in its mask is returned unchanged.

        Raises
        ------
        InputError
            If the mask is missing or empty, or the brain holds NaN, infinity, or only zeros.
        """
        self._check_ready(target)
        values = check_volume(volume)
        self._check_grid(volume.shape, volume.affine)
        if values.min() == values.max():
            return HarmonizationResult(volume)
        context = ScanContext(source, covariates or {}, tissues or {}, self.modality_)
        result = self._harmonize(volume, target, context, np.random.default_rng(seed),
                                 checkpoint_folder)
        return HarmonizationResult(self._check_result(volume, result.volume), result.uncertainty)

    def intensity_map(
        self, volume: Volume, target: Target, *, source: str | None = None,
        covariates: Mapping[str, Any] | None = None,
        tissues: Mapping[str, np.ndarray] | None = None,
    ) -> IntensityMap:
        """Return the map from an image to a target, to be applied on any grid of the same world.

        Parameters
        ----------
        volume, target, source, covariates, tissues
            As in `harmonize_with_uncertainty`.

        Raises
        ------
        UsageError
            If the method makes no intensity maps (`Capabilities.intensity_map`).
        InputError
            As `harmonize_with_uncertainty`; also if the brain is constant.
        """
        raise UsageError(f"{self.name} makes no intensity maps; use harmonize.")

    def enroll(self, scans: Iterable[Scan], label: str) -> Target:
        """Make a target of 1 to 20 scans that need not have been in the fit.

        Parameters
        ----------
        scans : iterable of Scan
            Preprocessed scans of the model's modality.
        label : str
            Name of the target.

        Raises
        ------
        UsageError
            If the backend has no reference targets.
        InputError
            If there are no scans, more than 20, one of another modality, or one on another grid.
        """
        scans = tuple(scans)
        if not self.capabilities.reference_target:
            raise UsageError(f"{self.name} has no reference targets; name a site of the fit.")
        if not 1 <= len(scans) <= MAX_SITE_CARD_SCANS:
            raise InputError(f"enroll expects 1 to {MAX_SITE_CARD_SCANS} scans, got {len(scans)}.")
        self._check_fitted()
        for scan in scans:
            self._check_modality(scan.modality)
            image = load_nifti(scan.image)
            self._check_grid(image.shape[:3], image.affine)
        return Target("reference", label, len(scans), self.name, str(self.modality_),
                      {**self._texture_of(scans), **self._enroll(scans)})

    def target(self, label: str) -> Target:
        """Return the target of a site of the fit, or ``scanner-free`` where the backend has it.

        Raises
        ------
        UsageError
            If there is no such target.
        """
        self._check_fitted()
        if label == SCANNER_FREE:
            if not self.capabilities.scanner_free:
                raise UsageError(f"{self.name} has no scanner-free target; name a site: "
                                 f"{', '.join(self.sites_)}.")
            return Target(SCANNER_FREE, label, sum(self.sites_.values()), self.name,
                          str(self.modality_), self._site_style(label))
        if label not in self.sites_:
            raise UsageError(f"site {label!r} was not seen at fit time. "
                             f"{did_you_mean(label, self.sites_)} Or give reference images.")
        return Target("site", label, self.sites_[label], self.name, str(self.modality_),
                      {**self.textures_.get(label, {}), **self._site_style(label)})

    def describe_model(self) -> dict[str, Any]:
        """Return facts about the fitted model for sidecars, besides its name and hash."""
        return {}

    def describe_target(self, target: Target) -> dict[str, Any]:
        """Return facts about a target for the sidecars of images harmonized to it."""
        return {}

    def statistics_of(self, style: Mapping[str, np.ndarray]) -> tuple[Any, Any]:
        """Return the lattice and the local tissue statistics of a target's style.

        Raises
        ------
        UsageError
            If the method does not measure them (`Capabilities.tissue_statistics`).
        """
        raise UsageError(f"{self.name} measures no tissue statistics; use tissue_matching.")

    def training_history(self) -> list[dict[str, Any]]:
        """Return the rows of history.tsv; empty for methods without training."""
        return []

    def training_facts(self) -> list[str]:
        """Return lines about the training for the model card; empty for methods without one."""
        return []

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the model folder (config, cohort, weights, history, card)."""
        self._check_fitted()
        textures = {f"{SITE_TEXTURE}{site}/{name}": array
                    for site, found in self.textures_.items() for name, array in found.items()}
        return model_folder.write(Path(folder), self, {**self._state(), **textures})

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Read a model folder.

        Raises
        ------
        UnavailableError
            If the folder is damaged, or holds a model of another backend or version.
        """
        facts, arrays = model_folder.read(Path(folder))
        if facts["Backend"] != cls.name or facts["BackendVersion"] != cls.version:
            raise UnavailableError(
                f"{folder}: holds a model of {facts['Backend']} version {facts['BackendVersion']}, "
                f"expected {cls.name} version {cls.version}. Choose that backend, or fit again."
            )
        backend = cls(cls.config_from(facts["Config"]))
        backend.modality_, backend.cohort_ = facts["Modality"], facts["Cohort"]
        backend.sites_ = {label: site["Scans"] for label, site in facts["Cohort"]["Sites"].items()}
        backend.left_out_sites_ = tuple(facts["Cohort"].get("SitesLeftOut", ()))
        backend.left_out_scans_ = dict(facts["Cohort"].get("ScansLeftOut", {}))
        try:
            backend._set_textures({name: array for name, array in arrays.items()
                                   if name.startswith(SITE_TEXTURE)})
            backend._set_state({name: array for name, array in arrays.items()
                                if not name.startswith(SITE_TEXTURE)})
        except (KeyError, TypeError, ValueError) as error:
            raise UnavailableError(f"{folder}: its weights do not fit its config ({error}). "
                                   "Fit again.") from error
        return backend

    def _set_textures(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Restore the texture of the sites; ValueError or KeyError if the arrays are invalid."""
        self.textures_ = {}
        for key, array in arrays.items():
            site, _, name = key.removeprefix(SITE_TEXTURE).rpartition("/")
            self.textures_.setdefault(site, {})[name] = array
        for found in self.textures_.values():
            ScanTexture.from_arrays(found)

    @classmethod
    def config_from(cls, values: Mapping[str, Any]) -> Any:
        """Make a `Config` from names and values.

        Raises
        ------
        UsageError
            If a name is unknown or a value is invalid.
        """
        names = [f.name for f in dataclasses.fields(cls.Config)]
        for name in values:
            if name not in names:
                raise UsageError(f"{cls.name} has no option {name!r}. {did_you_mean(name, names)}")
        given = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        given |= {name: split_texts(value) for name, value in given.items()
                  if isinstance(value, str) and is_texts(cls.Config, name)}
        try:
            check_types(cls.Config, given)
            return cls.Config(**given)
        except (TypeError, ValueError, ArithmeticError) as error:
            raise UsageError(f"{cls.name}: {error}") from error

    def on(self, device: str) -> Self:
        """Move the networks, if there are any, to ``cpu``, ``cuda`` or ``cuda:N``."""
        return self

    @property
    def saves_model(self) -> bool:
        """Whether this process saves the model, of several that fit it together."""
        return True

    # To be implemented by a method ----------------------------------------------------------

    @abstractmethod
    def _fit(self, cohort: Cohort, seed: int, progress: Progress) -> None:
        """Learn from scans of one modality."""

    @abstractmethod
    def _harmonize(self, volume: Volume, target: Target, context: ScanContext,
                   rng: np.random.Generator, checkpoint_folder: Path | None
                   ) -> HarmonizationResult:
        """Compute new intensities inside the mask; the volume was checked and is not constant."""

    @abstractmethod
    def _site_style(self, label: str) -> Mapping[str, np.ndarray]:
        """Return what was learned of a site (or of ``scanner-free``)."""

    @abstractmethod
    def _enroll(self, scans: tuple[Scan, ...]) -> Mapping[str, np.ndarray]:
        """Return a style made of new scans."""

    @abstractmethod
    def _state(self) -> dict[str, np.ndarray]:
        """Return everything learned, as arrays by name."""

    @abstractmethod
    def _set_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Restore `_state`; KeyError or ValueError if the arrays do not fit."""

    def _check_style(self, style: Mapping[str, np.ndarray]) -> None:
        """Raise KeyError or ValueError if these arrays are not a style of this method."""

    # Invariants -----------------------------------------------------------------------------

    def _check_fitted(self) -> None:
        if self.modality_ is None:
            raise UsageError(f"{self.name} is not fitted yet. Call fit(cohort) or load(folder).")

    def _check_modality(self, modality: str) -> None:
        if modality != self.modality_:
            raise InputError(f"this model is of {self.modality_}, got {modality}. "
                             "Harmonize each modality separately.")

    def _check_grid(self, shape: tuple[int, ...], affine: np.ndarray) -> None:
        """Check that an image of the fit's shape has its affine too, if location matters.

        Raises
        ------
        InputError
            If a corner of the grid is more than 0.001 mm from that of the fit.
        """
        grid = self.cohort_.get("Grid")
        if not self.uses_location or grid is None or tuple(grid["Shape"]) != tuple(shape):
            return
        if not same_grid(shape, affine, shape, np.array(grid["Affine"])):
            raise InputError(
                f"the image has the shape {tuple(shape)} of the images that {self.name} was fitted "
                f"on, but another affine (tolerance {AFFINE_TOLERANCE_MM} mm), so it shows other "
                "places. Register it to the template and resample it on its grid.")

    def _check_ready(self, target: Target) -> None:
        self._check_fitted()
        if (target.backend, target.modality) != (self.name, self.modality_):
            raise InputError(
                f"target {target.label!r} was made for {target.backend} on {target.modality}, this "
                f"is {self.name} on {self.modality_}. Enroll its scans again with this model."
            )
        try:
            self._check_style(target.style)
        except (KeyError, ValueError) as error:
            raise InputError(f"target {target.label!r}: its numbers do not belong to {self.name} "
                             f"({error}). Enroll its scans again with this model.") from error

    def _check_result(self, before: Volume, after: Volume) -> Volume:
        """Restore the background, and check the shape, NaN and sign of the result."""
        mask = before.mask
        assert mask is not None
        if after.shape != before.shape:
            raise InternalError(f"{self.name} changed the shape {before.shape} to {after.shape}.")
        new = after.data[mask]
        if not np.isfinite(new).all():
            raise InternalError(f"{self.name} made {int((~np.isfinite(new)).sum())} NaN voxels.")
        made_negative = (new < 0) & (before.data[mask] >= 0)
        if made_negative.any():
            raise InternalError(f"{self.name} made {int(made_negative.sum())} negative voxels.")
        data = before.data.copy()
        data[mask] = new
        return before.with_data(data)


def check_volume(volume: Volume) -> np.ndarray:
    """Return the in-mask values of a volume that can be harmonized.

    Raises
    ------
    InputError
        If the mask is missing or empty, or the brain holds NaN, infinity, or only zeros.
    """
    if volume.mask is None or not volume.mask.any():
        raise InputError("the brain mask is missing or empty. Check the brain extraction.")
    values = volume.in_mask()
    if not np.isfinite(values).all():
        raise InputError("the image holds NaN or infinite voxels in the brain. Repair it.")
    if not values.any():
        raise InputError("the image is zero everywhere in the brain mask. Check image and mask.")
    return values


def read_scan(scan: Scan) -> Volume:
    """Read a scan and check that it can be harmonized; an `InputError` names its file."""
    volume = scan.read()
    try:
        check_volume(volume)
    except InputError as error:
        raise InputError(f"{scan.image}: {error}") from error
    return volume


class StatisticsBackend(Backend):
    """Method that describes a scanner by a few numbers and changes contrast by an `IntensityMap`.

    It implements `_summary` (one scan -> numbers), `_pool` (numbers of a site's scans -> its style)
    and `_map` (volume and style -> map).
    """

    by_tissue: ClassVar[bool] = False
    """Whether it treats each tissue separately, by known tissues or by those of `segment`."""

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.styles_: dict[str, dict[str, np.ndarray]] = {}

    def intensity_map(
        self, volume: Volume, target: Target, *, source: str | None = None,
        covariates: Mapping[str, Any] | None = None,
        tissues: Mapping[str, np.ndarray] | None = None,
    ) -> IntensityMap:
        """See `Backend.intensity_map`."""
        self._check_ready(target)
        values = check_volume(volume)
        self._check_grid(volume.shape, volume.affine)
        if values.min() == values.max():
            raise InputError("the image is constant in the brain mask. Check image and mask.")
        return self._map_of(volume, target, ScanContext(source, covariates or {}, tissues or {},
                                                        self.modality_))

    def apply_baseline(self, volume: Volume, target: Target, context: ScanContext) -> Volume:
        """Harmonize a volume without the checks of `harmonize`, as the baseline of a method."""
        return self._map_of(volume, target, context).apply(volume)

    def _map_of(self, volume: Volume, target: Target, context: ScanContext) -> IntensityMap:
        """Return the map as `_map` does, for methods that use the context of the scan."""
        return self._map(volume, target.style)

    @abstractmethod
    def _summary(self, volume: Volume) -> dict[str, np.ndarray]:
        """Describe one scan by numbers, free of its own gain where possible."""

    @abstractmethod
    def _pool(self, summaries: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Make the style of a site from the numbers of its scans."""

    @abstractmethod
    def _map(self, volume: Volume, style: Mapping[str, np.ndarray]) -> IntensityMap:
        """Return the map from a volume to a style."""

    def _fit(self, cohort: Cohort, seed: int, progress: Progress) -> None:
        summaries: dict[str, list[dict[str, np.ndarray]]] = {}
        for done, scan in enumerate(cohort):
            progress(done, len(cohort))
            summaries.setdefault(scan.site, []).append(self._summary_of(scan))
        progress(len(cohort), len(cohort))
        self.styles_ = {site: self._pool(summaries[site]) for site in sorted(summaries)}

    def _summary_of(self, scan: Scan) -> dict[str, np.ndarray]:
        return self._summary(read_scan(scan))

    def _enroll(self, scans: tuple[Scan, ...]) -> Mapping[str, np.ndarray]:
        return self._pool([self._summary_of(scan) for scan in scans])

    def _harmonize(self, volume: Volume, target: Target, context: ScanContext,
                   rng: np.random.Generator, checkpoint_folder: Path | None
                   ) -> HarmonizationResult:
        return HarmonizationResult(self._map_of(volume, target, context).apply(volume))

    def _site_style(self, label: str) -> Mapping[str, np.ndarray]:
        return self.styles_[label]

    def segment(self, volume: Volume) -> Mapping[str, np.ndarray]:
        """Return the (I, J, K) tissue probabilities of a volume; for methods `by_tissue`."""
        raise NotImplementedError

    def _mean_style(self, styles: list[Mapping[str, np.ndarray]], gains: np.ndarray
                    ) -> dict[str, np.ndarray]:
        """Average the styles of sites, each for images that are `gains` times as bright."""
        return {name: np.mean([style[name] * gain for style, gain in zip(styles, gains)], axis=0)
                for name in styles[0]}

    def _shared_state(self) -> dict[str, np.ndarray]:
        """Return what was learned besides the styles of sites, by names without a slash."""
        return {}

    def _set_shared_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Restore `_shared_state`; KeyError or ValueError if the arrays do not fit."""

    def _state(self) -> dict[str, np.ndarray]:
        return self._shared_state() | {f"{site}/{name}": array
                                       for site, style in self.styles_.items()
                                       for name, array in style.items()}

    def _set_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._set_shared_state({key: array for key, array in arrays.items() if "/" not in key})
        styles: dict[str, dict[str, np.ndarray]] = {site: {} for site in self.sites_}
        for key, array in arrays.items():
            if "/" in key:
                site, name = key.rsplit("/", 1)
                styles[site][name] = array
        if not all(styles.values()):
            raise ValueError("a site has no numbers")
        for style in styles.values():
            self._check_style(style)
        self.styles_ = styles
