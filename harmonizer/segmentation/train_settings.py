"""What decides the segmenter's weights, beside the label maps; and the presets."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TrainingSettings", "PRESETS"]


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
    """

    steps: int
    learning_rate: float = 2e-3
    warm_up: int = 100
    weight_decay: float = 1e-4
    ema: float = 0.998
    seed: int = 0
    held_out: int = 2
    precision: str = "bf16"


PRESETS = {
    "test": TrainingSettings(steps=20, held_out=0, precision="fp32", warm_up=5),
    "cpu-1h": TrainingSettings(steps=3500),
    "shipped": TrainingSettings(steps=3300),
    "cpu-4h": TrainingSettings(steps=14_000),
    "cpu-12h": TrainingSettings(steps=42_000),
    "gpu-20min": TrainingSettings(steps=12_000),
}
