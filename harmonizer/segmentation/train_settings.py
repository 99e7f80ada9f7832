"""What decides the segmenter's weights, beside the label maps; presets, and plans of several."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from .network import DEFAULT_WIDTHS
from .synthesis import CROP, SynthesisSettings

__all__ = ["TrainingSettings", "Phase", "CURRICULUM", "WHOLE_HEADS", "PRESETS", "PLANS"]

SMALL_CROP = (96, 112, 96)


@dataclass(frozen=True)
class Phase:
    """A part of the training.

    Attributes
    ----------
    until : the first step that is not in it, as a share (0..1) of all steps
    synthesis : what images are like in it
    """

    until: float
    synthesis: SynthesisSettings


# From one contrast to all. With every contrast from the first step on, the network learned where
# the brain is and, in 800 steps, nothing of its tissues: which way round they are differs from
# image to image, so on average no local edge means anything. Whole-brain crops come last.
CURRICULUM = (
    Phase(0.16, SynthesisSettings(crop=SMALL_CROP, familiar=1.0, contrasts=(1, 0, 0, 0))),
    Phase(0.40, SynthesisSettings(crop=SMALL_CROP, familiar=0.9)),
    Phase(0.88, SynthesisSettings(crop=SMALL_CROP)),
    Phase(1.00, SynthesisSettings(crop=CROP)),
)

# The same steps of a plan of 4500 that had to end after 3300.
SHORT = tuple(
    Phase(until / 3300, phase.synthesis)
    for until, phase in zip((720, 1800, 3100, 3300), CURRICULUM)
)

# After `first`: what the network meets in use, brains in masks, and as often as T1w the contrasts
# that it knew least, in thick slices more often than before.
MASKED = SynthesisSettings(
    crop=SMALL_CROP, stripped=1.0, cut=0.1, thick=0.35, familiar=0.65,
    contrasts=(0.3, 0.25, 0.3, 0.15),
)
FURTHER = (Phase(0.94, MASKED), Phase(1.0, replace(MASKED, crop=CROP)))

# After `further`: the same, with widened sulci in half of the heads. The maps have little fluid in
# narrow sulci, and the network missed it there.
LONGER = tuple(replace(p, synthesis=replace(p.synthesis, atrophy=0.5)) for p in FURTHER)

# After `longer` twice: widened sulci in a tenth. With half of them for any longer, a brain's rim
# becomes fluid.
LATER = tuple(replace(p, synthesis=replace(p.synthesis, atrophy=0.1)) for p in FURTHER)

# For the mask of the brain in a whole head: at 3 mm, with the neck, in any direction now and then.
WHOLE_HEAD = SynthesisSettings(
    crop=(64, 80, 80), voxel_mm=3.0, brain=True, rotation_deg=30.0, turned=0.15, scale=0.2,
    stripped=0.1, defaced=0.2, cut=0.3, thick=0.3,
)
WHOLE_HEADS = (Phase(0.2, replace(WHOLE_HEAD, familiar=0.9)), Phase(1.0, WHOLE_HEAD))
BRAIN_WIDTHS = (16, 32, 64, 96)


@dataclass(frozen=True)
class TrainingSettings:
    """What decides the weights, with the label maps.

    Attributes
    ----------
    steps : images seen (one a step)
    learning_rate : at its peak; a linear warm-up, then a half cosine to nothing at `horizon`
    warm_up : steps
    cool_down : so many steps before the end, the rate falls to nothing, wherever the cosine is
    horizon : step at which the cosine ends; 0: the last one
    weight_decay : of AdamW
    ema : decay of the moving average, itself warmed up: min(ema, (1 + n) / (10 + n))
    seed : of weights and images
    held_out : so many label maps, the last by name, are never trained on
    precision : 'bf16' computes convolutions in bfloat16, 'fp32' everything in single precision
    phases : what images are like, one after the other
    widths : channels of the network, see `SegmenterNet`
    """

    steps: int
    learning_rate: float = 2e-3
    warm_up: int = 100
    cool_down: int = 100
    horizon: int = 0
    weight_decay: float = 1e-4
    ema: float = 0.998
    seed: int = 0
    held_out: int = 2
    precision: str = "bf16"
    phases: tuple[Phase, ...] = CURRICULUM
    widths: tuple[int, ...] = DEFAULT_WIDTHS

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of what the network tells apart."""
        return self.phases[-1].synthesis.classes

    def synthesis_at(self, step: int) -> SynthesisSettings:
        """What image number `step` is like."""
        here = step / self.steps
        return next((p for p in self.phases if here < p.until - 1e-9), self.phases[-1]).synthesis

    def rate_at(self, step: int) -> float:
        """The learning rate of a step."""
        horizon = max(self.horizon, self.steps)
        done = min(1.0, max(0.0, (step - self.warm_up) / max(1, horizon - self.warm_up)))
        ramp = min(1.0, (step + 1) / self.warm_up, (self.steps - step) / max(1, self.cool_down))
        return self.learning_rate * ramp * 0.5 * (1 + math.cos(math.pi * done))


PRESETS = {
    "test": TrainingSettings(steps=20, held_out=0, precision="fp32", warm_up=5, cool_down=2),
    "first": TrainingSettings(steps=3300, horizon=4500, cool_down=500, phases=SHORT),
    "further": TrainingSettings(
        steps=3600, learning_rate=1.5e-3, cool_down=300, phases=FURTHER),
    "longer": TrainingSettings(
        steps=5600, learning_rate=1.5e-3, cool_down=300, phases=LONGER),
    "later": TrainingSettings(
        steps=5600, learning_rate=1.5e-3, cool_down=300, phases=LATER),
    "brain": TrainingSettings(
        steps=16000, cool_down=500, phases=WHOLE_HEADS, widths=BRAIN_WIDTHS),
    "brain-later": TrainingSettings(
        steps=10000, learning_rate=1.5e-3, cool_down=500, phases=WHOLE_HEADS[-1:],
        widths=BRAIN_WIDTHS),
}

# Presets one after the other, each with a seed of its own: hours on two quiet CPU cores (.57 s a
# step). What an hour more reaches is measured in docs/segmentation.md, and what the package holds.
PLANS = {
    f"cpu-{hours}h": ("first", "further", "longer", "longer", *["later"] * 9)[: hours + 1]
    for hours in range(1, 13)
}
PLANS["whole-heads"] = ("brain", "brain", "brain-later", "brain-later")
PLANS["gpu-20min"] = PLANS["cpu-4h"]  # the same 23,700 steps; .05 s each on a GPU, not yet measured
