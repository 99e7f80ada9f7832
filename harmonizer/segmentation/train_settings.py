"""Training settings of the segmentation networks: presets, and plans of several presets."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from .network import DEFAULT_WIDTHS
from .synthesis import CROP_VOXELS, SynthesisSettings

__all__ = ["TrainingSettings", "Phase", "CURRICULUM", "WHOLE_HEADS", "PRESETS", "PLANS"]

SMALL_CROP = (96, 112, 96)


@dataclass(frozen=True)
class Phase:
    """Part of a training with its own kind of images.

    Attributes
    ----------
    until : float
        End of the phase, as a fraction of all steps, 0 to 1.
    synthesis : SynthesisSettings
        Settings of the images.
    """

    until: float
    synthesis: SynthesisSettings


# A curriculum from one contrast to all. Trained on all contrasts from the start, the network found
# the brain but, after 800 steps, no tissue: the order of tissue intensities differs between images,
# so a local edge carries no information on average. Whole-brain crops come last.
CURRICULUM = (
    Phase(0.16, SynthesisSettings(crop=SMALL_CROP, familiar=1.0, contrasts=(1, 0, 0, 0))),
    Phase(0.40, SynthesisSettings(crop=SMALL_CROP, familiar=0.9)),
    Phase(0.88, SynthesisSettings(crop=SMALL_CROP)),
    Phase(1.00, SynthesisSettings(crop=CROP_VOXELS)),
)

# The first 3300 steps of a curriculum of 4500.
SHORT_CURRICULUM = tuple(
    Phase(until / 3300, phase.synthesis)
    for until, phase in zip((720, 1800, 3100, 3300), CURRICULUM)
)

# After `first`: masked brains, as in use, with T2w and FLAIR as often as T1w, more thick slices.
MASKED_SYNTHESIS = SynthesisSettings(
    crop=SMALL_CROP, stripped=1.0, cut=0.1, thick=0.35, familiar=0.65,
    contrasts=(0.3, 0.25, 0.3, 0.15),
)
FURTHER_CURRICULUM = (Phase(0.94, MASKED_SYNTHESIS),
                      Phase(1.0, replace(MASKED_SYNTHESIS, crop=CROP_VOXELS)))

# After `further`: the same, with widened sulci in half of the heads. The label maps have little CSF
# in narrow sulci, and the network missed it there.
LONGER_CURRICULUM = tuple(replace(p, synthesis=replace(p.synthesis, atrophy=0.5))
                          for p in FURTHER_CURRICULUM)

# After `longer` twice: widened sulci in a tenth of the heads. With half of the heads for longer,
# the network labels the rim of the brain as CSF.
LATER_CURRICULUM = tuple(replace(p, synthesis=replace(p.synthesis, atrophy=0.1))
                         for p in FURTHER_CURRICULUM)

# For the brain mask of whole heads: at 3 mm, with the neck, 15 % of the heads in any orientation.
WHOLE_HEAD = SynthesisSettings(
    crop=(64, 80, 80), voxel_mm=3.0, brain=True, rotation_deg=30.0, turned=0.15, scale=0.2,
    stripped=0.1, defaced=0.2, cut=0.3, thick=0.3,
)
WHOLE_HEADS = (Phase(0.2, replace(WHOLE_HEAD, familiar=0.9)), Phase(1.0, WHOLE_HEAD))
BRAIN_WIDTHS = (16, 32, 64, 96)


@dataclass(frozen=True)
class TrainingSettings:
    """Settings that, with the label maps, determine the weights.

    Attributes
    ----------
    steps : int
        Steps; each uses one image.
    learning_rate : float
        Peak of the learning rate, after a linear warmup and before a half cosine.
    warmup_steps : int
        Steps of the warmup.
    cooldown_steps : int
        Steps at the end over which the learning rate falls linearly to zero.
    decay_steps : int
        Step at which the cosine ends; 0 is the last step.
    weight_decay : float
        Weight decay of AdamW.
    ema : float
        Decay of the moving average of the weights, limited to (1 + n) / (10 + n) at step n.
    seed : int
        Seed of weights and images.
    n_validation_maps : int
        Number of label maps, the last by name, that are used for validation only.
    precision : str
        'bf16' computes convolutions in bfloat16, 'fp32' everything in single precision.
    phases : tuple of Phase
        Kinds of images, in order.
    widths : tuple of int
        Channels of the network, see `SegmenterNet`.
    """

    steps: int
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    cooldown_steps: int = 100
    decay_steps: int = 0
    weight_decay: float = 1e-4
    ema: float = 0.998
    seed: int = 0
    n_validation_maps: int = 2
    precision: str = "bf16"
    phases: tuple[Phase, ...] = CURRICULUM
    widths: tuple[int, ...] = DEFAULT_WIDTHS

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the network's classes."""
        return self.phases[-1].synthesis.classes

    def synthesis_at(self, step: int) -> SynthesisSettings:
        """Return the image settings of a step."""
        here = step / self.steps
        return next((p for p in self.phases if here < p.until - 1e-9), self.phases[-1]).synthesis

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step."""
        decay_steps = max(self.decay_steps, self.steps)
        warmup = self.warmup_steps
        done = min(1.0, max(0.0, (step - warmup) / max(1, decay_steps - warmup)))
        ramp = min(1.0, (step + 1) / warmup, (self.steps - step) / max(1, self.cooldown_steps))
        return self.learning_rate * ramp * 0.5 * (1 + math.cos(math.pi * done))


PRESETS = {
    "test": TrainingSettings(steps=20, n_validation_maps=0, precision="fp32", warmup_steps=5,
                             cooldown_steps=2),
    "first": TrainingSettings(
        steps=3300, decay_steps=4500, cooldown_steps=500, phases=SHORT_CURRICULUM),
    "further": TrainingSettings(
        steps=3600, learning_rate=1.5e-3, cooldown_steps=300, phases=FURTHER_CURRICULUM),
    "longer": TrainingSettings(
        steps=5600, learning_rate=1.5e-3, cooldown_steps=300, phases=LONGER_CURRICULUM),
    "later": TrainingSettings(
        steps=5600, learning_rate=1.5e-3, cooldown_steps=300, phases=LATER_CURRICULUM),
    "brain": TrainingSettings(
        steps=16000, cooldown_steps=500, phases=WHOLE_HEADS, widths=BRAIN_WIDTHS),
    "brain-later": TrainingSettings(
        steps=10000, learning_rate=1.5e-3, cooldown_steps=500, phases=WHOLE_HEADS[-1:],
        widths=BRAIN_WIDTHS),
}

# Plans: presets in order, each with its own seed. Durations are for two CPU cores with bfloat16
# instructions (0.57 s a step). docs/concepts/segmentation.md lists the accuracy after each hour.
PLANS = {
    f"cpu-{hours}h": ("first", "further", "longer", "longer", *["later"] * 9)[: hours + 1]
    for hours in range(1, 13)
}
PLANS["whole-heads"] = ("brain", "brain", "brain-later", "brain-later")
PLANS["gpu-20min"] = PLANS["cpu-4h"]  # 23,700 steps of 0.05 s; a whole run was not measured
