"""Settings that all learned methods share, and the options of inference."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ...deep.training.settings import TrainingSchedule
from ..config import Settings, setting

__all__ = ["LearnedConfig", "InferenceOptions", "PRESETS", "NONE", "TINY_BASELINE", "AS_PUBLISHED",
           "PREDICTIONS", "SPACINGS", "check_sampling"]

PRESETS = ("tiny", "small", "paper")
NONE = "none"
TINY_BASELINE = "histogram_matching"  # baseline of the presets `tiny`
AS_PUBLISHED = dict(  # shared by the presets `paper`; 1e6 does not clip gradients
    baseline=NONE, weight_residual=False, validate_every=0, ema=0.0, clip=1e6)
PREDICTIONS = ("eps", "x0", "v")
SPACINGS = ("leading", "even", "quadratic")
MEMORY_REDUCTION = 4  # times fewer slices at once after a device ran out of memory


@dataclass(frozen=True)
class LearnedConfig(Settings):
    """Settings of every learned method; a method's own config derives from this.

    Attributes
    ----------
    preset : {"tiny", "small", "paper"}
        Name of the values below: for tests, for a CPU, for a GPU.
    baseline : str
        Training-free method whose result the networks correct, or ``none``. Training on slabs or
        patches uses a simpler method of its kind (`harmonizer.methods.learned.patch_baseline`).
    validation_fraction : float
        Fraction of each site's subjects that is kept from training, in [0, 1). Half of them choose
        the weights (validation), the others measure the error of the result (test).
    weight_residual : bool
        Weight the networks' residual by its benefit on validation subjects; 0 without any.
        Otherwise the residual is added in full (the papers).
    steps, ema, log_every, validate_every, patience, save_every
        See `harmonizer.deep.training.settings.TrainingSchedule`.
    validation_cases : int
        Number of simulated scanners that each of the two errors is measured on.
    validation_depth : int
        Axial slices of each of them; 0 = all.
    clip : float
        Maximum norm of the gradient.
    """

    preset: str = "small"
    baseline: str = "tissue_matching"
    validation_fraction: float = setting(0.1, low=0, below=1)
    weight_residual: bool = True
    steps: int = setting(20_000, low=0)
    ema: float = setting(0.999, low=0, below=1)
    log_every: int = setting(50, low=1)
    validate_every: int = setting(500, low=0)
    patience: int = setting(0, low=0)
    save_every: int = setting(250, low=1)
    validation_cases: int = setting(4, low=0)
    validation_depth: int = setting(8, low=0)
    clip: float = setting(1.0, above=0)

    @property
    def uses_validation(self) -> bool:
        """Whether validation subjects choose the weights of networks or residual."""
        return self.weight_residual or self.validate_every > 0

    def training_schedule(self) -> TrainingSchedule:
        """Return the part of the config that the training loop reads."""
        return TrainingSchedule(self.steps, self.ema, self.log_every, self.validate_every,
                                self.patience, self.save_every)


def check_sampling(timesteps: int, count: int) -> None:
    """ValueError if a diffusion has fewer timesteps than sampling steps."""
    if not 1 <= count <= timesteps:
        raise ValueError(f"sampling_steps: expected 1 to {timesteps} (timesteps), got {count}.")


@dataclass(frozen=True)
class InferenceOptions:
    """Options of one inference that change memory or resumption, not the result.

    Attributes
    ----------
    batch_slices : int, optional
        Slices that a network processes at once. None for methods that work on patches, whose size
        is part of the method.
    checkpoint_folder : Path, optional
        Where a slow method saves its progress within a volume.
    """

    batch_slices: int | None = None
    checkpoint_folder: Path | None = None

    def with_less_memory(self) -> InferenceOptions:
        """Return the same options with fewer slices at once."""
        if self.batch_slices is None:
            return self
        return replace(self, batch_slices=max(1, self.batch_slices // MEMORY_REDUCTION))
