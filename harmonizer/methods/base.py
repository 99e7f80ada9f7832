"""The backend contract: four public verbs written once, a few blanks for each method.

``fit(cohort)`` learns what scanners look like, ``harmonize(volume, target)`` gives one image the
look of a target, ``save(folder)`` and ``load(folder)`` keep what was learned; ``enroll(scans)``
makes a target of scans that were not in the fit. What must hold for every method is checked here
and cannot be forgotten by one: finite input with a mask, background untouched, geometry the very
same objects, no negative or NaN voxel that the input did not have, same seed same bits.

A method fills in: `Config`, `_fit`, `_enroll`, `_harmonize`, `_state`, `_set_state`. Those that
describe a scanner by a few numbers derive from `StatisticsBackend` and fill in three blanks.
"""

from __future__ import annotations

import dataclasses
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from ..cohort import Cohort, Scan
from ..contrast.intensity_map import IntensityMap
from ..contrast.local_statistics import stack_probabilities
from ..contrast.texture import ScanTexture, measure_texture, pool_textures
from ..errors import InputError, InternalError, UnavailableError, UsageError, did_you_mean
from ..volume import AFFINE_TOLERANCE_MM, Volume, load_nifti, same_grid
from . import model_folder
from .config import check_kinds, is_texts, split_texts
from .target import Target

__all__ = ["Capabilities", "Known", "Backend", "StatisticsBackend", "BRIGHTEST", "SCANNER_FREE"]

SCANNER_FREE = "scanner-free"
BRIGHTEST = 1e30  # no image is brighter; beyond it, float32 arithmetic would overflow
SITE_TEXTURE = "texture:"  # prefix of the texture numbers of sites in a model
MAX_ENROLLED = 20  # scans a site card is made of; more belongs into a fit

Progress = Callable[[int, int], None]
Self = TypeVar("Self", bound="Backend")


@dataclass(frozen=True)
class Capabilities:
    """What a backend can do; callers ask this, never the class. Tests hold it to every claim.

    Attributes
    ----------
    unseen_source : harmonizes scans of sites that were not in the fit
    reference_target : can `enroll` reference scans as a target
    scanner_free : has a target that is no scanner
    intensity_map : its change is an `IntensityMap`, which also serves the subject's own grid
    fixed_grid : works only on the grid that it was fitted on
    trained : fit trains a network (minutes to days, wants a GPU)
    modalities : one set of networks can be trained on several modalities (`fit_networks`)
    """

    unseen_source: bool = True
    reference_target: bool = True
    scanner_free: bool = False
    intensity_map: bool = False
    fixed_grid: bool = False
    trained: bool = False
    modalities: bool = False


@dataclass(frozen=True)
class Known:
    """What is known of a scan beside its image.

    Attributes
    ----------
    source : site label, for methods that need it; may be unseen
    covariates : of the person (``age``, ``sex``, columns of participants.tsv), for methods that
        keep what they explain
    tissues : tissue -> (I, J, K) share of each voxel where they are known already, for methods
        that would segment the image otherwise
    """

    source: str | None = None
    covariates: Mapping[str, Any] = field(default_factory=dict)
    tissues: Mapping[str, np.ndarray] = field(default_factory=dict)


class Backend(ABC):
    """One harmonization method. `__init__` stores its config and computes nothing."""

    name: ClassVar[str]
    version: ClassVar[str] = "1"
    reference: ClassVar[str]
    """Citation of the method: authors, year, DOI."""
    summary: ClassVar[str]
    """One sentence for the methods text, in the past tense."""
    capabilities: ClassVar[Capabilities]
    Config: ClassVar[type]
    """Frozen dataclass; every field has a default."""
    uses_location: ClassVar[bool] = True
    """Whether a change depends on where a voxel lies; False for maps of intensities alone."""

    def __init__(self, config: Any = None) -> None:
        self.config = self.Config() if config is None else config
        self.modality_: str | None = None
        self.sites_: dict[str, int] = {}
        self.cohort_: dict[str, Any] = {}
        self.left_out_sites_: tuple[str, ...] = ()
        """Sites with scans of which the selection of the fit took none; set it before `fit`."""
        self.left_out_scans_: dict[str, str] = {}
        """Scan -> why it was not used; set it before `fit`, which notes it in the model."""
        self.textures_: dict[str, dict[str, np.ndarray]] = {}
        self.scratch: Path | None = None
        """Where a method that takes long keeps what is finished of a volume, so that the same call
        goes on there. One folder for one call: same model, target, seed, scan and device."""
        self.spread_: np.ndarray | None = None
        """(I, J, K) float32, standard deviation over what was drawn for the last volume, in the
        result's unit; None where nothing or one noise volume is drawn."""

    @property
    def region(self) -> str:
        """Whose masks the method is to be given, in a fit and later: ``brain`` or ``head``."""
        return "brain"

    def check_given(self) -> None:
        """Before hours of work that end in a fit: are files that the config names what they should
        be? InputError if not."""

    # The four verbs, and enroll -------------------------------------------------------------

    def fit(self: Self, cohort: Cohort, *, seed: int = 0, progress: Progress | None = None) -> Self:
        """Learn what the scanners of a cohort look like.

        Parameters
        ----------
        cohort : preprocessed scans of one modality, template grid, with masks
        seed : of everything that is drawn
        progress : called with (done, total)

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
                "Harmonize each modality within itself."
            )
        cohort.require_one_grid()
        self._fit(cohort, seed, progress or (lambda done, total: None))
        self._remember(cohort)
        return self

    def _remember(self, cohort: Cohort) -> None:
        """Of whom the model was made, who was left out, and the texture of the scans."""
        self.modality_, self.sites_ = cohort.scans[0].modality, cohort.sites
        self.textures_ = {site: found for site in cohort.sites
                          if (found := self._texture_of(cohort.of_site(site).scans))}
        self.cohort_ = {**model_folder.describe_cohort(cohort),
                        **model_folder.describe_left_out(self), **self._fit_facts()}

    def _fit_facts(self) -> dict[str, Any]:
        """What the method says of its fit, for cohort.json and the card; JSON types."""
        return {}

    def _texture_of(self, scans: tuple[Scan, ...]) -> dict[str, np.ndarray]:
        """Arrays of a site card: noise, blur and band energies of scans with tissue maps."""
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
        """The same image as if scanned at `target`; a pure function of its arguments.

        Parameters
        ----------
        volume : template-grid image with a brain mask, any intensity unit
        source, covariates, tissues : see `Known`
        seed : of whatever is drawn

        Returns
        -------
        Volume
            Same grid, same mask (the very same objects); voxels outside the mask bit for bit the
            input's. An image that is constant in its mask has no contrast and comes back as it is.

        Raises
        ------
        InputError
            If the mask is missing or empty, or the brain holds NaN, infinity, or only zeros.
        """
        self._check_ready(target)
        values = _check_volume(volume)
        self._check_grid(volume.shape, volume.affine)
        if values.min() == values.max():
            return volume
        known = Known(source, covariates or {}, tissues or {})
        result = self._harmonize(volume, target, known, np.random.default_rng(seed))
        return self._check_result(volume, result)

    def enroll(self, scans: Iterable[Scan], label: str) -> Target:
        """Make a target of 1 to 20 scans that need not have been in the fit.

        Raises
        ------
        UsageError
            If the backend cannot aim at references.
        InputError
            If there are no scans, more than 20, one of another modality, or one on another grid.
        """
        scans = tuple(scans)
        if not self.capabilities.reference_target:
            raise UsageError(f"{self.name} cannot aim at reference images; name a site of the fit.")
        if not 1 <= len(scans) <= MAX_ENROLLED:
            raise InputError(f"enroll expects 1 to {MAX_ENROLLED} scans, got {len(scans)}.")
        self._check_fitted()
        for scan in scans:
            self._check_modality(scan.modality)
            image = load_nifti(scan.image)
            self._check_grid(image.shape[:3], image.affine)
        return Target("reference", label, len(scans), self.name, str(self.modality_),
                      {**self._texture_of(scans), **self._enroll(scans)})

    def target(self, label: str) -> Target:
        """The target of a site seen in fit, or ``scanner-free`` where the backend has it."""
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
        """What sidecars say of the fitted model, beyond its name and hash."""
        return {}

    def describe_target(self, target: Target) -> dict[str, Any]:
        """What the method can tell of a target, for the sidecars of what is brought there."""
        return {}

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the model folder (config, cohort, weights, history, card)."""
        self._check_fitted()
        textures = {f"{SITE_TEXTURE}{site}/{name}": array
                    for site, found in self.textures_.items() for name, array in found.items()}
        return model_folder.write(Path(folder), self, {**self._state(), **textures})

    @classmethod
    def load(cls: type[Self], folder: str | os.PathLike[str]) -> Self:
        """Read a model folder; one of another backend, or damaged, is refused by name."""
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
        """Texture numbers of sites; ValueError or KeyError if they are none."""
        self.textures_ = {}
        for key, array in arrays.items():
            site, _, name = key.removeprefix(SITE_TEXTURE).rpartition("/")
            self.textures_.setdefault(site, {})[name] = array
        for found in self.textures_.values():
            ScanTexture.from_arrays(found)

    @classmethod
    def config_from(cls, values: Mapping[str, Any]) -> Any:
        """A `Config` from names and values; an unknown name or bad value is a `UsageError`."""
        known = [f.name for f in dataclasses.fields(cls.Config)]
        for name in values:
            if name not in known:
                raise UsageError(f"{cls.name} has no option {name!r}. {did_you_mean(name, known)}")
        given = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        given |= {name: split_texts(value) for name, value in given.items()
                  if isinstance(value, str) and is_texts(cls.Config, name)}
        try:
            check_kinds(cls.Config, given)
            return cls.Config(**given)
        except (TypeError, ValueError, ArithmeticError) as error:
            raise UsageError(f"{cls.name}: {error}") from error

    def on(self: Self, device: str) -> Self:
        """The same backend, its networks (if it has any) on ``cpu``, ``cuda`` or ``cuda:N``."""
        return self

    @property
    def writes(self) -> bool:
        """Whether this process saves the model, of several that fit it together."""
        return True

    # Blanks ---------------------------------------------------------------------------------

    @abstractmethod
    def _fit(self, cohort: Cohort, seed: int, progress: Progress) -> None:
        """Learn from scans of one modality."""

    @abstractmethod
    def _harmonize(
        self, volume: Volume, target: Target, known: Known, rng: np.random.Generator
    ) -> Volume:
        """New intensities inside the mask; the volume was checked and is not constant."""

    @abstractmethod
    def _site_style(self, label: str) -> Mapping[str, np.ndarray]:
        """What was learned of a site (or of ``scanner-free``)."""

    @abstractmethod
    def _enroll(self, scans: tuple[Scan, ...]) -> Mapping[str, np.ndarray]:
        """A style made of new scans."""

    @abstractmethod
    def _state(self) -> dict[str, np.ndarray]:
        """Everything learned, as arrays by name."""

    @abstractmethod
    def _set_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """The inverse of `_state`; KeyError or ValueError if the arrays do not fit."""

    def _check_style(self, style: Mapping[str, np.ndarray]) -> None:
        """KeyError or ValueError if these arrays are no style of this method (cards travel)."""

    # Invariants -----------------------------------------------------------------------------

    def _check_fitted(self) -> None:
        if self.modality_ is None:
            raise UsageError(f"{self.name} is not fitted yet. Call fit(cohort) or load(folder).")

    def _check_modality(self, modality: str) -> None:
        if modality != self.modality_:
            raise InputError(f"this model is of {self.modality_}, got {modality}. "
                             "Harmonize each modality within itself.")

    def _check_grid(self, shape: tuple[int, ...], affine: np.ndarray) -> None:
        """An image of the fit's shape must have its affine too, where location counts.

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
            raise InputError(f"target {target.label!r}: its numbers are none of {self.name} "
                             f"({error}). Enroll its scans again with this model.") from error

    def _check_result(self, before: Volume, after: Volume) -> Volume:
        """`after` with the background put back; a broken promise is our own fault and says so."""
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


def _check_volume(volume: Volume) -> np.ndarray:
    """In-mask values of a volume that can be harmonized; else an `InputError` that says why."""
    if volume.mask is None or not volume.mask.any():
        raise InputError("the brain mask is missing or empty. Check the brain extraction.")
    values = volume.in_mask()
    if not np.isfinite(values).all():
        raise InputError("the image holds NaN or infinite voxels in the brain. Repair it.")
    if not values.any():
        raise InputError("the image is zero everywhere in the brain mask. Check image and mask.")
    return values


class StatisticsBackend(Backend):
    """A method that describes a scanner by a few numbers and changes contrast by an `IntensityMap`.

    It fills in `_summary` (one scan -> numbers), `_pool` (numbers of a site's scans -> its style)
    and `_map` (volume + style -> map).
    """

    by_tissue: ClassVar[bool] = False
    """Whether it treats each tissue by itself, by `Known.tissues` or by those of `_tissues_in`."""

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.styles_: dict[str, dict[str, np.ndarray]] = {}

    def intensity_map(
        self, volume: Volume, target: Target, *, source: str | None = None,
        covariates: Mapping[str, Any] | None = None,
        tissues: Mapping[str, np.ndarray] | None = None,
    ) -> IntensityMap:
        """The map from `volume` to `target`, to be applied on any grid of the same world.

        Parameters
        ----------
        source, covariates, tissues : see `Known`

        Raises
        ------
        InputError
            As `harmonize`; also if the brain is constant, for then there is no contrast to map.
        """
        self._check_ready(target)
        values = _check_volume(volume)
        self._check_grid(volume.shape, volume.affine)
        if values.min() == values.max():
            raise InputError("the image is constant in the brain mask. Check image and mask.")
        return self._map_of(volume, target, Known(source, covariates or {}, tissues or {}))

    def _map_of(self, volume: Volume, target: Target, known: Known) -> IntensityMap:
        """As `_map`, for methods that ask where a scan comes from and what is known of it."""
        return self._map(volume, target.style)

    @abstractmethod
    def _summary(self, volume: Volume) -> dict[str, np.ndarray]:
        """Numbers that describe one scan, each free of the scan's own gain where it can be."""

    @abstractmethod
    def _pool(self, summaries: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """The style of a scanner from its scans' numbers."""

    @abstractmethod
    def _map(self, volume: Volume, style: Mapping[str, np.ndarray]) -> IntensityMap:
        """The map that gives `volume` the look of `style`."""

    def _fit(self, cohort: Cohort, seed: int, progress: Progress) -> None:
        summaries: dict[str, list[dict[str, np.ndarray]]] = {}
        for done, scan in enumerate(cohort):
            progress(done, len(cohort))
            summaries.setdefault(scan.site, []).append(self._summary_of(scan))
        progress(len(cohort), len(cohort))
        self.styles_ = {site: self._pool(summaries[site]) for site in sorted(summaries)}

    def _summary_of(self, scan: Scan) -> dict[str, np.ndarray]:
        return self._summary(self._read(scan))

    @staticmethod
    def _read(scan: Scan) -> Volume:
        volume = scan.read()
        try:
            _check_volume(volume)
        except InputError as error:
            raise InputError(f"{scan.image}: {error}") from error
        return volume

    def _enroll(self, scans: tuple[Scan, ...]) -> Mapping[str, np.ndarray]:
        return self._pool([self._summary_of(scan) for scan in scans])

    def _harmonize(
        self, volume: Volume, target: Target, known: Known, rng: np.random.Generator
    ) -> Volume:
        return self._map_of(volume, target, known).apply(volume)

    def _site_style(self, label: str) -> Mapping[str, np.ndarray]:
        return self.styles_[label]

    def _tissues_in(self, volume: Volume) -> Mapping[str, np.ndarray]:
        """Tissue -> (I, J, K) share; of methods that go `by_tissue`."""
        raise NotImplementedError

    def _mixed(self, styles: list[Mapping[str, np.ndarray]], gains: np.ndarray
               ) -> dict[str, np.ndarray]:
        """The mean of sites' styles, each of images that are `gains` times as bright."""
        return {name: np.mean([style[name] * gain for style, gain in zip(styles, gains)], axis=0)
                for name in styles[0]}

    def _shared_state(self) -> dict[str, np.ndarray]:
        """What was learned beside the styles of sites, by names without a slash."""
        return {}

    def _set_shared_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """The inverse of `_shared_state`; KeyError or ValueError if the arrays do not fit."""

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
