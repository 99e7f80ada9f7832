"""What decides the segmenter's weights, beside the label maps; and the presets."""

from __future__ import annotations

from dataclasses import dataclass

from .synthesis import CROP, SynthesisSettings

__all__ = ["TrainingSettings", "Phase", "CURRICULUM", "PRESETS"]

SMALL_CROP = (96, 112, 96)


@dataclass(frozen=True)
class Phase:
    """A part of the training.

    Attributes
    ----------
    share : of all steps, 0..1
    synthesis : what images are like in it
    """

    share: float
    synthesis: SynthesisSettings


# From one contrast to all. With every contrast from the first step on, the network learned where
# the brain is and, in 800 steps, nothing of its tissues: which way round they are differs from
# image to image, so on average no local edge means anything. Whole-brain crops come last.
CURRICULUM = (
    Phase(0.16, SynthesisSettings(crop=SMALL_CROP, familiar=1.0, contrasts=(1, 0, 0, 0))),
    Phase(0.24, SynthesisSettings(crop=SMALL_CROP, familiar=0.9)),
    Phase(0.48, SynthesisSettings(crop=SMALL_CROP)),
    Phase(0.12, SynthesisSettings(crop=CROP)),
)


@dataclass(frozen=True)
class TrainingSettings:
    """What decides the weights, with the label maps.

    Attributes
    ----------
    steps : images seen (one a step)
    learning_rate : at its peak; a linear warm-up, then a half cosine to nothing
    warm_up : steps
    weight_decay : of AdamW
    ema : decay of the moving average, itself warmed up: min(ema, (1 + n) / (10 + n))
    seed : of weights and images
    held_out : so many label maps, the last by name, are never trained on
    precision : 'bf16' computes convolutions in bfloat16, 'fp32' everything in single precision
    phases : what images are like, one after the other
    """

    steps: int
    learning_rate: float = 2e-3
    warm_up: int = 100
    weight_decay: float = 1e-4
    ema: float = 0.998
    seed: int = 0
    held_out: int = 2
    precision: str = "bf16"
    phases: tuple[Phase, ...] = CURRICULUM

    def synthesis_at(self, step: int) -> SynthesisSettings:
        """What image number `step` is like."""
        until = 0.0
        for phase in self.phases:
            until += phase.share * self.steps
            if step < until:
                return phase.synthesis
        return self.phases[-1].synthesis


PRESETS = {
    "test": TrainingSettings(steps=20, held_out=0, precision="fp32", warm_up=5),
    "shipped": TrainingSettings(steps=4500),
    "cpu-1h": TrainingSettings(steps=7000),
    "cpu-4h": TrainingSettings(steps=28_000),
    "cpu-12h": TrainingSettings(steps=84_000),
    "gpu-20min": TrainingSettings(steps=20_000),
}
