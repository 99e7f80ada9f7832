"""What all methods with networks share: presets, training, and the way in and out of a network.

A method derives from `LearnedBackend` and fills in

    presets    {"tiny": {...}, "small": {...}, "paper": {...}}: values that differ from `Config`'s
    _build()             -> {name: nn.Module}, from config and `labels_`
    _game(store, trained, seed) -> Game: players, losses, batches (harmonizer.deep.training)
    _describe(shown)     -> numbers of one scan;   _pool(numbers of scans) -> style of a site
    _change(shown, style, rng) -> the change of intensities, in the network's unit

and gets: the split by people, the cache of volumes, resume, devices, the average of the weights,
early stopping on people who were held out, the null hypothesis as starting point, whole volumes on
any grid, saving and loading. torch is imported inside the methods.

**Start at the null.** With `start` the image is first brought to the target by a method without
training (what it learned is kept inside ours), in the target's own unit; the network sees that
image and its answer is added as a change. An untrained network changes nothing and equals the
null, which learned methods otherwise lose 2-4 dB against. `start="none"` scales by robust
percentiles alone, which is what the papers do.

**As much as it is worth.** Held-out people (`harmonizer.methods.learned.validation`) tell which
share of the
change comes nearest to their truth, from none to all of it, and so much of it is used (`share_`;
ours, in no paper). Where nobody was held out, all of it is.
"""

from __future__ import annotations

import contextlib
import logging
import math
import tempfile
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from ...bounding_box import Canvas
from ...cohort import Cohort, Scan
from ...contrast.intensity import IntensityScale
from ...contrast.local_statistics import stack_probabilities
from ...deep.processor import full_precision
from ...errors import InputError, UnavailableError, UsageError, did_you_mean
from ...volume import Volume
from .. import registry
from ..base import BRIGHTEST, Backend, Known, Progress, Self, StatisticsBackend, _check_volume
from ..ranges import at_least
from ..target import Target
from .network_input import Shown
from .validation import Case, judged, matched_percentiles

if TYPE_CHECKING:
    from ...deep.training.data import VolumeStore
    from ...deep.training.settings import Pace
    from ...deep.training.task import Game
    from .fit import Fitted

__all__ = ["LearnedBackend", "LearnedConfig", "PRESETS", "null_of", "of_start", "share_name",
           "modalities_of", "read_checked", "first_line"]

T = TypeVar("T")
LOGGER = logging.getLogger("harmonizer")
PRESETS = ("tiny", "small", "paper")
NOTHING_KNOWN = Known()
NONE = "none"
LARGEST = 0.5  # change after a first guess, of [-1, 1]; unlike all of training, more may be asked
FLOOR = 0.1  # a change may darken a voxel to a tenth, never to zero or below
START = "start."
MODALITY = "modality/"
SIMPLE = "histogram_matching"  # start of the presets `tiny`
MAX_SIDE = 2048  # voxels; of a canvas that a file claims
MAX_VOXELS = 1 << 28  # of all three sides; a head at .4 mm has a fifth of it
RATES = {"learning_rate", "content_rate", "enroll_rate"}  # of some methods or of all
SPARING = 4  # times fewer slices at once after a device had not enough memory


@dataclass(frozen=True)
class LearnedConfig:
    """What every learned method lets one choose; a method's own config derives from this.

    Attributes
    ----------
    preset : ``tiny`` (tests), ``small`` (CPU), ``paper`` (GPU); a word for the values below
    start : a method without training that makes the first guess, or ``none``. Training that sees
        slabs or patches alone has a simpler one of its kind
        (`harmonizer.methods.learned.patch_baseline`)
    held_out : share of each site's people that are held out of training
    steps, ema, log_every, validate_every, patience, save_every : see
    `harmonizer.deep.training.Pace`
    validation_cases : simulated scanners that the held-out error is measured on
    validation_depth : axial slices of each of them; 0 = all
    """

    preset: str = "small"
    start: str = "tissue_matching"
    held_out: float = 0.1
    steps: int = 20_000
    ema: float = 0.999
    log_every: int = 50
    validate_every: int = 500
    patience: int = 0
    save_every: int = 250
    validation_cases: int = 4
    validation_depth: int = 8

    def __post_init__(self) -> None:
        at_least(self, 1, "log_every", "save_every")
        at_least(self, 0, "steps", "validate_every", "patience", "validation_cases",
                 "validation_depth", *RATES & vars(self).keys())
        if not (0 <= self.held_out < 1 and 0 <= self.ema < 1):
            raise ValueError(f"held_out and ema lie in [0, 1), got {self.held_out} and {self.ema}.")
        if not self.clip > 0:
            raise ValueError(f"clip is above 0, got {self.clip}.")

    def pace(self) -> Pace:
        """The part of the config that the training loop reads."""
        from ...deep.training.settings import Pace

        return Pace(self.steps, self.ema, self.log_every, self.validate_every, self.patience,
                    self.save_every)


class LearnedBackend(Backend):
    """A method with networks; see the module's docstring for its blanks."""

    version = "3"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]]
    multiple: ClassVar[tuple[int, int, int]] = (1, 1, 1)
    """Sides of the canvas are multiples of these; a method may make it a property."""
    wants_tissues: ClassVar[bool] = False
    """Whether training makes first guesses of parts of brains, or statistics are balanced by tissue
    (`harmonizer.methods.learned.network_input`); where `start` goes by tissue, tissues are then
    looked for."""

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        from ...deep.training.settings import Resources

        self.resources: Resources = Resources()
        self.labels_: tuple[str, ...] = ()
        self.modalities_: tuple[str, ...] = ()  # that the networks were fitted on
        self.networks_: dict[str, Any] = {}
        self.styles_: dict[str, dict[str, np.ndarray]] = {}
        self.canvas_: Canvas | None = None
        self.grid_shape_: tuple[int, ...] = ()
        self.history_: list[dict[str, Any]] = []
        self.training_: dict[str, Any] = {}
        self.share_ = 1.0
        self._spread: np.ndarray | None = None  # of the last `_change`, in its unit
        self._null = null_of(self.config.start)

    @classmethod
    def config_from(cls, values: Mapping[str, Any]) -> Any:
        """A `Config` from names and values, over those of the preset that is named among them."""
        preset = values.get("preset", cls.Config().preset)
        if preset not in cls.presets:
            raise UsageError(f"{cls.name} has no preset {preset!r}. "
                             f"{did_you_mean(str(preset), cls.presets)}")
        return super().config_from({**cls.presets[preset], **values})

    # Blanks ---------------------------------------------------------------------------------

    @abstractmethod
    def _build(self) -> dict[str, Any]:
        """New networks by name, on the CPU; torch's generator is seeded."""

    def _take_given(self) -> None:
        """Before training: weights from files that the user names go into the new networks.

        They stay in the model, which therefore needs no such file; a stranger's config is no reason
        to read one.
        """

    @abstractmethod
    def _game(self, store: VolumeStore, trained: tuple[int, ...], seed: int) -> Game:
        """The game over `self.networks_` on the scans `trained` of the store.

        `identity` and `score` may be left as they are: they are filled in.
        """

    @abstractmethod
    def _describe(self, shown: Shown) -> dict[str, np.ndarray]:
        """Numbers of one scan, by the trained networks."""

    @abstractmethod
    def _pool(self, summaries: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """The style of a site from its scans' numbers."""

    @abstractmethod
    def _change(self, shown: Shown, style: Mapping[str, np.ndarray], rng: np.random.Generator
                ) -> np.ndarray:
        """The change that brings an image (after `start`) to a style.

        Returns
        -------
        ndarray
            (I, J, K) float32, after - before; what lies outside the mask is not used.
        """

    # Fit ------------------------------------------------------------------------------------

    def _fit(self, cohort: Cohort, seed: int, progress: Progress) -> None:
        from .fit import fit_networks

        fit_networks({cohort.scans[0].modality: self}, cohort, seed, progress)

    def _take(self, outcome: Fitted, cohort: Cohort) -> None:
        """Networks as they were fitted, and of this model's own modality the rest."""
        import torch

        self.labels_, self.modalities_ = tuple(cohort.sites), outcome.modalities
        with torch.random.fork_rng([]):
            self._set_networks(outcome.weights)
        self.canvas_, self.grid_shape_ = outcome.canvas, outcome.grid_shape
        self.history_, self.training_ = outcome.history, outcome.facts
        self.modality_ = cohort.scans[0].modality
        self.share_ = outcome.share_of(self.modality_)
        summaries: dict[str, list[dict[str, np.ndarray]]] = {}
        for scan in cohort:
            summaries.setdefault(scan.site, []).append(self._summary_of(scan))
        self.styles_ = {site: self._pool_all(summaries[site], self._start_style(site))
                        for site in sorted(summaries)}

    def on(self: Self, device: str) -> Self:
        """Networks on a device; see `Backend.on`."""
        self.resources = replace(self.resources, device=device)
        for network in self.networks_.values():
            network.to(device)
        return self

    def describe_model(self) -> dict[str, Any]:
        """The method of the first guess, and how much of the networks' change is added, 0 to 1."""
        return {"StartedFrom": self.config.start, "ShareOfNetworks": round(self.share_, 4)}

    @property
    def writes(self) -> bool:
        """Whether this process saves the model (one of those that a scheduler started does)."""
        return bool(self.training_.get("First", True))

    @contextlib.contextmanager
    def _folder(self) -> Iterator[Path]:
        if self.resources.folder is not None:
            self.resources.folder.mkdir(parents=True, exist_ok=True)
            yield self.resources.folder
            return
        with tempfile.TemporaryDirectory(prefix="harmonizer-fit-") as folder:
            yield Path(folder)

    def _set_networks(self, weights: Mapping[str, np.ndarray]) -> None:
        """Build the networks and give them these weights; in evaluation mode, on the device."""
        import torch

        from ...deep.networks.blocks import to_layout

        networks = self._build()
        for name, network in networks.items():
            mine = {k.split(".", 1)[1]: torch.from_numpy(np.array(v)) for k, v in weights.items()
                    if k.split(".", 1)[0] == name}
            network.load_state_dict(mine)  # RuntimeError if they do not fit
            to_layout(network.to(self.resources.device)).eval().requires_grad_(False)
        self.networks_ = networks

    # Styles ---------------------------------------------------------------------------------

    def _summary_of(self, scan: Scan) -> dict[str, np.ndarray]:
        volume = read_checked(scan)
        shown = self._shown(volume, self._found(volume, Known(tissues=scan.read_tissues())))
        return {START + "percentiles": np.array([shown.scale.low, shown.scale.high]),
                **self._within_memory(lambda: self._describe(shown))}

    def _pool_all(self, summaries: list[dict[str, np.ndarray]],
                  start: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A style: what `start` knows of the scans, their percentiles, and the method's own."""
        percentiles = np.mean([s[START + "percentiles"] for s in summaries], axis=0)
        own = [{k: v for k, v in s.items() if not k.startswith(START)} for s in summaries]
        return {**{START + k: v for k, v in start.items()}, START + "percentiles": percentiles,
                **self._pool(own)}

    @property
    def _tissues_wanted(self) -> Callable[[Volume], Mapping[str, np.ndarray]] | None:
        """What finds the tissues that training needs; None if it needs none."""
        by_tissue = self.wants_tissues and self._null is not None and self._null.by_tissue
        return self._null._tissues_in if by_tissue and self._null else None

    def _found(self, volume: Volume, known: Known) -> Known:
        """What is known of a scan, with its tissues where they are needed."""
        if known.tissues or self._tissues_wanted is None:
            return known
        return replace(known, tissues=self._tissues_wanted(volume))

    def _fit_facts(self) -> dict[str, Any]:
        return self._null._fit_facts() if self._null else {}

    def _start_style(self, site: str) -> Mapping[str, np.ndarray]:
        return self._null.styles_[site] if self._null else {}

    def _site_style(self, label: str) -> Mapping[str, np.ndarray]:
        return self.styles_[label]

    def _enroll(self, scans: tuple[Scan, ...]) -> Mapping[str, np.ndarray]:
        start = self._null._enroll(scans) if self._null else {}
        return self._pool_all([self._summary_of(scan) for scan in scans], start)

    # Harmonize ------------------------------------------------------------------------------

    def _harmonize(self, volume: Volume, target: Target, known: Known,
                   rng: np.random.Generator) -> Volume:
        known = self._found(volume, known)
        first = self._first_guess(volume, target, known)
        self.spread_ = None
        if not self.share_:
            return first
        change = self._change_of(first, target.style, known, rng)
        if self.spread_ is not None:
            self.spread_ *= np.float32(self.share_)
        return self._require_numbers(_added(first, np.float32(self.share_) * change))

    def _change_of(self, first: Volume, style: Mapping[str, np.ndarray], known: Known,
                   rng: np.random.Generator) -> np.ndarray:
        """(I, J, K) float32, what the networks would add to a first guess; 0 outside the brain.

        `spread_` becomes that of this change.
        """
        shown, self._spread = self._shown(first, known), None
        drawn = rng.bit_generator.state
        change = self._within_memory(
            lambda: self._change(shown, style, _put_back(rng, drawn)))
        if self._null is not None:
            change = np.clip(change, -LARGEST, LARGEST)

        def put(values: np.ndarray) -> np.ndarray:
            values = values * np.float32((shown.scale.high - shown.scale.low) / 2)
            return shown.canvas.put(np.where(shown.mask, values, 0).astype(np.float32),
                                    np.zeros(first.shape, np.float32))

        self.spread_ = None if self._spread is None else put(self._spread)
        return put(change)

    def _require_numbers(self, volume: Volume) -> Volume:
        """Networks of a stranger may give anything; so may one whose training went wrong."""
        if not np.isfinite(volume.in_mask()).all():
            raise UnavailableError(
                f"{self.name}: the networks gave NaN or infinite voxels; the model's weights or "
                "the target's numbers are out of range. Fit again, or take another target.")
        return volume

    def _first_guess(self, volume: Volume, target: Target, known: Known) -> Volume:
        """The image in the target's unit: by the null, or by two percentiles alone."""
        if self._null is None:
            return matched_percentiles(volume, target.style[START + "percentiles"])
        aim = replace(target, backend=self._null.name, style=of_start(target.style))
        return self._null._map_of(volume, aim, known).apply(volume)

    def _canvas_of(self, volume: Volume) -> Canvas:
        """The fit's canvas where the grid is the fit's and holds the brain, else one around it."""
        assert volume.mask is not None and self.canvas_ is not None
        if volume.shape == self.grid_shape_:
            shown = self.canvas_.take(volume.mask, False)
            if shown.sum() == volume.mask.sum():
                return self.canvas_
        return Canvas.around(volume.mask, self.multiple)

    def _shown(self, volume: Volume, known: Known = NOTHING_KNOWN) -> Shown:
        """A scan as networks see it; its own percentiles become -1 and 1, beyond is clipped."""
        assert volume.mask is not None
        canvas, scale = self._canvas_of(volume), IntensityScale.of(volume.in_mask())
        unit = np.where(volume.mask, np.clip(scale.to_unit(volume.data), -1, 1), np.float32(-1))
        shares = None
        if self._tissues_wanted is not None and known.tissues:  # as in training
            shares = np.stack([canvas.take(one)
                               for one in stack_probabilities(known.tissues, volume)])
        return Shown(canvas.take(unit, -1.0), canvas.take(volume.mask, False), canvas, scale,
                     shares, known.source)

    def _within_memory(self, work: Callable[[], T]) -> T:
        """What `work` gives, in single precision; where a GPU's memory ends, once more with less.

        Less is fewer slices at once. Patches are not made smaller: they are a part of the method
        and would change the result.

        Raises
        ------
        UnavailableError
            If the memory does not suffice then, either.
        """
        import torch

        try:
            with full_precision():
                return work()
        except torch.cuda.OutOfMemoryError as error:
            LOGGER.warning("%s: %s; once more with less at once.", self.name, first_line(error))
        torch.cuda.empty_cache()  # out here, where no traceback holds tensors any more
        kept, self.config = self.config, _sparing(self.config)
        try:
            with full_precision():
                return work()
        except torch.cuda.OutOfMemoryError as error:
            raise UnavailableError(
                f"{self.name}: {self.resources.device} has not enough memory for one scan "
                f"({first_line(error)}). Use --device cpu or a GPU with more memory, or end what "
                "else runs on this one."
            ) from error
        finally:
            self.config = kept

    # State ----------------------------------------------------------------------------------

    def _state(self) -> dict[str, np.ndarray]:
        assert self.canvas_ is not None
        arrays = {f"net/{name}.{k}": v.cpu().numpy() for name, network in self.networks_.items()
                  for k, v in network.state_dict().items()}
        arrays |= {f"style/{site}/{k}": v for site, style in self.styles_.items()
                   for k, v in style.items()}
        if self._null:
            arrays |= {f"start/{k}": v for k, v in self._null._shared_state().items()}
        arrays |= {MODALITY + name: np.array([n]) for n, name in enumerate(self.modalities_)}
        canvas = np.array([self.canvas_.start, self.canvas_.shape, self.grid_shape_], np.int64)
        return {**arrays, "share": np.array([self.share_]), "canvas": canvas}

    def _set_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        import torch

        self.canvas_, self.grid_shape_ = _canvas_of_state(arrays["canvas"])
        if any(side % step for side, step in zip(self.canvas_.shape, self.multiple)):
            raise ValueError(f"the canvas {self.canvas_.shape} is no multiple of {self.multiple}")
        self.labels_ = tuple(self.sites_)
        self.modalities_ = tuple(sorted(key.removeprefix(MODALITY) for key in arrays
                                        if key.startswith(MODALITY)))
        if self.modality_ not in self.modalities_:
            raise ValueError(f"its networks were not trained on {self.modality_}")
        styles: dict[str, dict[str, np.ndarray]] = {site: {} for site in self.sites_}
        for key, array in arrays.items():
            if key.startswith("style/"):
                site, name = key.removeprefix("style/").rsplit("/", 1)
                styles[site][name] = array
        self.styles_ = styles
        self.share_ = _share_of_state(arrays["share"])
        if self._null:
            self._null.left_out_sites_ = self.left_out_sites_
            self._null.modality_, self._null.sites_ = self.modality_, self.sites_
            self._null._set_shared_state({k.removeprefix("start/"): v for k, v in arrays.items()
                                          if k.startswith("start/")})
            self._null.styles_ = {site: of_start(style) for site, style in styles.items()}
        weights = {k.removeprefix("net/"): v for k, v in arrays.items() if k.startswith("net/")}
        try:
            self._check_weights(weights)
            with torch.random.fork_rng([]):
                self._set_networks(weights)
            for site in self.sites_:
                self._check_style(self._site_style(site))
        except (RuntimeError, ArithmeticError, AssertionError, IndexError) as error:
            raise ValueError(first_line(error)) from error

    def _check_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Names and shapes are those of the networks; ValueError if not.

        They are built without memory first: a config may claim a network of a terabyte.
        """
        import torch

        with torch.device("meta"), torch.random.fork_rng([]), _at_most(len(weights)):
            networks = self._build()
        expected = {f"{name}.{k}": tuple(v.shape) for name, network in networks.items()
                    for k, v in network.state_dict().items()}
        for name in sorted(expected.keys() ^ weights.keys()):
            raise ValueError(f"array {name:.80} is {'missing' if name in expected else 'extra'}")
        for name, shape in expected.items():
            if weights[name].shape != shape:
                raise ValueError(f"array {name} has shape {weights[name].shape}, expected {shape}")

    def _check_style(self, style: Mapping[str, np.ndarray]) -> None:
        """The numbers that `start` and the intensity scale need; a method checks its own."""
        low_high = np.asarray(style[START + "percentiles"], np.float64)
        if low_high.shape != (2,) or not (np.abs(low_high) < BRIGHTEST).all():
            raise ValueError(f"expected two percentiles below {BRIGHTEST:g}")
        if not low_high[0] < low_high[1]:
            raise ValueError("the upper percentile is not above the lower one")
        if self._null:
            self._null._check_style(of_start(style))

    # Held-out people ------------------------------------------------------------------------

    def held_out_error(self, cases: list[Case]) -> dict[str, float]:
        """``error``, ``null`` and ``share`` of simulated scanners on held-out people.

        See `harmonizer.methods.learned.validation.judged`. Of several modalities, the share of
        each as well.
        """
        changes = []
        for number, case in enumerate(cases):
            self.modality_ = case.modality
            changes.append(self._change_of(case.first, self._style_for(case),
                                           Known(tissues=case.tissues),
                                           np.random.default_rng(number)))
        numbers = judged(cases, changes)
        for modality in self.modalities_ if len(self.modalities_) > 1 else ():
            mine = [n for n, case in enumerate(cases) if case.modality == modality]
            if mine:
                numbers[share_name(modality)] = judged(
                    [cases[n] for n in mine], [changes[n] for n in mine])["share"]
        return numbers

    def _style_for(self, case: Case) -> Mapping[str, np.ndarray]:
        """The method's own numbers of a case's site, while it is being trained."""
        return self._pool([self._describe(self._shown(volume, Known(tissues=tissues)))
                           for volume, tissues in case.references])

    def training_facts(self) -> list[str]:
        """Lines for the model's card."""
        facts = self.training_
        if not facts:
            return []
        together = (f" on {', '.join(self.modalities_)} together"
                    if len(self.modalities_) > 1 else "")
        lines = [f"Trained{together} for {facts['Steps']} steps in {facts['Minutes']:.1f} minutes "
                 f"on {facts['Device']} (ended by: {facts['EndedBy']}); the weights are averages "
                 f"of step {facts['Best']}."]
        if facts.get("Error") is not None:
            lines.append(
                f"Simulated scanners on {facts['HeldOut']} held-out scans: error "
                f"{facts['Error']:.4f} of the intensity range; {self.config.start} alone "
                f"{facts['Null']:.4f}. {self.share_:.0%} of the networks' change is used: what "
                "came nearest to the truth there.")
        else:
            lines.append("Nobody was held out: how good it is was not measured in the fit.")
        return lines


def null_of(name: str) -> StatisticsBackend | None:
    """The method without training that `start` names, not fitted yet; None for ``none``."""
    if name == NONE:
        return None
    kind = registry.get(name)
    if not issubclass(kind, StatisticsBackend):
        raise UsageError(f"start {name!r} is not a method without training. Give tissue_matching, "
                         "histogram_matching, moment_matching, spectrum_swap or none.")
    return kind()


def modalities_of(scans: Iterable[Scan]) -> tuple[str, ...]:
    """Sorted."""
    return tuple(sorted({scan.modality for scan in scans}))


def share_name(modality: str) -> str:
    """Where held-out numbers of several modalities say how much of the change one of them uses."""
    return f"share {modality}"


def of_start(style: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The part of a style that `start` made."""
    return {k.removeprefix(START): v for k, v in style.items()
            if k.startswith(START) and k != START + "percentiles"}


def _share_of_state(array: np.ndarray) -> float:
    if array.shape != (1,) or not 0 <= array[0] <= 1:
        raise ValueError("share is not one number from 0 to 1")
    return float(array[0])


@contextlib.contextmanager
def _at_most(count: int) -> Iterator[None]:
    """Refuse to build more parameters than a file holds: its config may claim a million layers."""
    from torch.nn.modules.module import register_module_parameter_registration_hook

    built = 0

    def registered(*_: Any) -> None:
        nonlocal built
        built += 1
        if built > count:
            raise ValueError(f"the config builds more arrays than the {count} in the file")

    hook = register_module_parameter_registration_hook(registered)
    try:
        yield
    finally:
        hook.remove()


def _canvas_of_state(rows: np.ndarray) -> tuple[Canvas, tuple[int, ...]]:
    """(canvas, shape of the fit's grid); ValueError if no volume could have them."""
    if rows.shape != (3, 3) or rows.dtype.kind != "i":
        raise ValueError("the canvas is not three rows of three whole numbers")
    start, shape, grid = rows.tolist()
    if not all(1 <= n <= MAX_SIDE and 1 <= g <= MAX_SIDE and abs(a) <= MAX_SIDE
               for a, n, g in zip(start, shape, grid)) or max(
                   math.prod(shape), math.prod(grid)) > MAX_VOXELS:
        raise ValueError(f"the canvas starts at {start}, with sides {shape}, on a grid of {grid}")
    return Canvas(tuple(start), tuple(shape)), tuple(grid)


def _sparing(config: Any) -> Any:
    """The config with fewer slices at once, where it has them: that changes memory alone."""
    slices = getattr(config, "batch_slices", None)
    return config if slices is None else replace(config,
                                                 batch_slices=max(1, slices // SPARING))


def _put_back(rng: np.random.Generator, state: Any) -> np.random.Generator:
    """The generator as it was, so that a second try draws the same."""
    rng.bit_generator.state = state
    return rng


def first_line(error: Exception) -> str:
    """What an error says first."""
    return (str(error).splitlines() or ["out of memory"])[0]


def read_checked(scan: Scan) -> Volume:
    """A scan that can be harmonized; an `InputError` that names its file if not."""
    volume = scan.read()
    try:
        _check_volume(volume)
    except InputError as error:
        raise InputError(f"{scan.image}: {error}") from error
    return volume


def _added(volume: Volume, change: np.ndarray) -> Volume:
    """volume + change; fades towards zero intensity, so that nothing becomes dark or negative."""
    assert volume.mask is not None
    values = volume.data[volume.mask].astype(np.float64)
    low = max(float(np.quantile(values, 0.01)), 1e-3 * float(np.abs(values).max()))
    y = values + change[volume.mask] * np.clip(values / low, 0, 1)
    data = volume.data.copy()
    data[volume.mask] = np.where(values > 0, np.maximum(y, FLOOR * values), values)
    return volume.with_data(data)
