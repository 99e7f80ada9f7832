"""Training the networks of a learned method: in one process or several, on one modality or several.

**Together.** Where a method declares it, one set of networks is trained on several modalities, each
scan with its modality's code, and no pair of scans is of two modalities (Zhu et al. 2026 train one
network so; they do not say how it is told the modality). What comes out is a model for each
modality, as of any other fit: with its own sites, first guess and share of the networks' change,
and the same networks. So site cards, `--model` and the evaluation need not know of it; the price is
that the networks lie on disk once for each modality.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...cohort import Cohort
from ...errors import Terminated, UnavailableError, UsageError
from ...progress import reporter
from ...tissues import TISSUES
from ...volume import write_volume
from ..base import Progress, StatisticsBackend
from .base import LearnedBackend, first_line, modalities_of, null_of, read_checked, share_name
from .validation import Case, make_cases

if TYPE_CHECKING:
    from ...deep.training.settings import Resources

__all__ = ["Fitted", "fit_networks", "fit_together"]

PROLONGABLE = ("steps", "patience", "log_every", "save_every")  # a training may go on with others
MEMORY_OPTIONS = ("batch", "subjects", "views", "pairs", "slices", "patch")  # of a training step


@dataclass
class Fitted:
    """What a process hands back: plain values.

    Attributes
    ----------
    weights : of all networks, by name
    canvas, grid_shape : what they were shown of which grid
    history, facts : of the training
    modalities : that they were trained on, sorted
    numbers : see `LearnedBackend.held_out_error`; empty if nobody was held out
    """

    weights: dict[str, np.ndarray]
    canvas: Any
    grid_shape: tuple[int, ...]
    history: list[dict[str, Any]]
    facts: dict[str, Any]
    modalities: tuple[str, ...]
    numbers: dict[str, float]

    def share_of(self, modality: str) -> float:
        """How much of the networks' change to use; all of it where nobody was held out."""
        return self.numbers.get(share_name(modality), self.numbers.get("share", 1.0))


def fit_together(backends: Mapping[str, LearnedBackend], cohort: Cohort, *, seed: int = 0,
                 progress: Progress | None = None) -> None:
    """Fit models of several modalities with one set of networks.

    Parameters
    ----------
    backends : modality -> its model to be, all of one method and one config; the first one's
        `resources` are used
    cohort : preprocessed scans of these modalities, template grid, with masks

    Raises
    ------
    UsageError
        If the method cannot be trained on several modalities at once, or models and scans are not
        of the same modalities, or the models not of one method and config.
    InputError
        If a scan cannot be used.
    """
    first = next(iter(backends.values()), None)
    if first is None or not first.capabilities.modalities:
        raise UsageError(f"{first.name if first else 'this'} cannot be trained on several "
                         "modalities at once. Fit a model for each.")
    if set(backends) != set(modalities_of(cohort)):
        raise UsageError(f"expected scans of {', '.join(sorted(backends))}, got "
                         f"{', '.join(modalities_of(cohort)) or 'none'}.")
    if any((b.name, b.config) != (first.name, first.config) for b in backends.values()):
        raise UsageError("models of several methods or configs cannot share their networks.")
    fit_networks(backends, cohort, seed, progress or (lambda done, total: None))
    for modality, backend in backends.items():
        backend._remember(cohort.of_modality(modality))


def fit_networks(backends: Mapping[str, LearnedBackend], cohort: Cohort, seed: int,
                 progress: Progress) -> None:
    """First guesses and networks, then what each model keeps of its own modality."""
    from ...deep.training.processes import launch

    first = next(iter(backends.values()))
    with first._folder() as folder:
        parts = {}
        for modality, backend in backends.items():
            part = cohort.of_modality(modality)
            if backend._null:
                part = with_tissues(part, backend._null, folder / "tissues")
                backend._null.left_out_sites_ = backend.left_out_sites_
                backend._null.fit(part, seed=seed, progress=progress)
            parts[modality] = part
        whole = Cohort(tuple(scan for part in parts.values() for scan in part))
        resources = replace(first.resources, folder=folder)
        fitted = launch(_fit_in_process, resources, type(first), first.config, resources, whole,
                        seed, progress if first.resources.world == 1 else None)
        for modality, backend in backends.items():
            backend._take(fitted, parts[modality])


def _fit_in_process(ranks: Any, kind: type[LearnedBackend], config: Any, resources: Resources,
                    cohort: Cohort, seed: int, progress: Progress | None) -> Fitted:
    """One process of a fit: the store, the game, the loop."""
    import torch

    from ...deep.training.data import VolumeStore, identity_of
    from ...deep.training.loop import train

    assert resources.folder is not None
    backend = kind(config)
    backend.resources = replace(resources, device=str(ranks.device))
    backend.labels_, backend.modalities_ = tuple(cohort.sites), modalities_of(cohort)
    wanted = dict(multiple=backend.multiple, tissues_in=backend._tissues_wanted)
    if ranks.first:
        VolumeStore.build(cohort, resources.folder / "volumes", **wanted)
    ranks.wait()
    store = VolumeStore.build(cohort, resources.folder / "volumes", **wanted)
    backend.canvas_, backend.grid_shape_ = store.canvas, store.grid_shape
    trained, held = _split(cohort, config.held_out, seed)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        backend.networks_ = backend._build()
        backend._take_given()
    game = backend._game(store, trained, seed)
    game.identity = {"backend": kind.name, "version": kind.version, "seed": seed,
                     "config": {k: v for k, v in vars(config).items() if k not in PROLONGABLE},
                     "scans": [[*identity_of(scan), scan.site] for scan in cohort]}
    cases = []
    if held and config.validation_cases and ranks.first:
        cases = _cases(cohort, trained, held, config, seed)
        game.score = lambda: backend.held_out_error(cases)  # type: ignore[method-assign]
    own: Any = contextlib.nullcontext()
    if progress is None and ranks.first:  # the caller's is in another process
        own, progress = reporter("train")
    try:
        with own:
            outcome = train(game, config.pace(), resources, resources.folder, seed, ranks=ranks,
                            progress=progress)
    except torch.cuda.OutOfMemoryError as error:
        options = " ".join(f"{k}={v}" for k, v in vars(config).items() if k in MEMORY_OPTIONS)
        raise UnavailableError(
            f"{kind.name}: {ranks.device} has not enough memory for a step of training "
            f"({first_line(error)}). Set less with --backend-option (now {options}) or take a "
            "GPU with more memory, or --device cpu."
        ) from error
    if outcome.why == "signal":
        raise Terminated(f"{kind.name}: training was asked to stop and saved; the same command "
                         "goes on.")
    numbers = outcome.numbers
    if cases and not numbers:  # it ended before the first look
        with torch.random.fork_rng([]):
            backend._set_networks({k: v.float().numpy() for k, v in outcome.weights.items()})
        numbers = backend.held_out_error(cases)
    facts = {"Steps": outcome.steps, "Best": outcome.best, "Minutes": outcome.minutes,
             "EndedBy": outcome.why, "Device": f"{ranks.size} x {ranks.device}",
             "HeldOut": len(held), "Error": numbers.get("error"), "Null": numbers.get("null"),
             "First": ranks.first}
    weights = {k: v.float().numpy() for k, v in outcome.weights.items()}
    return Fitted(weights, store.canvas, store.grid_shape, outcome.history, facts,
                  backend.modalities_, numbers)


def _cases(cohort: Cohort, trained: tuple[int, ...], held: tuple[int, ...], config: Any, seed: int
           ) -> list[Case]:
    """Of each modality as many, each from a first guess within it."""
    cases = []
    for modality in modalities_of(cohort):
        ours, theirs = (tuple(i for i in some if cohort.scans[i].modality == modality)
                        for some in (trained, held))
        cases += make_cases(cohort, ours, theirs, null_of(config.start), config.validation_cases,
                            config.validation_depth, seed)
    return cases


def _split(cohort: Cohort, fraction: float, seed: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(trained, held out) indices of scans; no person is on both sides."""
    rest, held = cohort.split(fraction, seed)
    subjects = set(held.subjects)
    indices = range(len(cohort.scans))
    return (tuple(i for i in indices if cohort.scans[i].subject not in subjects),
            tuple(i for i in indices if cohort.scans[i].subject in subjects))


def with_tissues(cohort: Cohort, start: StatisticsBackend, folder: Path) -> Cohort:
    """The cohort with the tissues of all scans, where `start` goes by tissue.

    Those that are not known are looked for once and kept in the folder; what is there of the same
    files is taken.
    """
    from ...deep.training.data import identity_of

    scans = []
    for scan in cohort if start.by_tissue else ():
        name = hashlib.sha256(json.dumps(identity_of(scan)).encode()).hexdigest()[:16]
        paths = {tissue: folder / f"{name}_{tissue}.nii.gz" for tissue in TISSUES}
        if not scan.tissues and not all(path.is_file() for path in paths.values()):
            volume = read_checked(scan)
            for tissue, share in start._tissues_in(volume).items():
                write_volume(paths[tissue], volume.with_data(np.asarray(share, np.float32)))
        scans.append(scan if scan.tissues else replace(scan, tissues=paths))
    return Cohort(tuple(scans)) if scans else cohort
