"""A number that cannot be is refused when it is given, not after hours of training."""

from __future__ import annotations

import pytest

from harmonizer.errors import UsageError
from harmonizer.methods import registry

SHARED = [
    {"steps": -1},
    {"log_every": 0},
    {"save_every": 0},
    {"validation_depth": -3},
    {"ema": 2.0},
    {"validation_fraction": 1.5},
    {"learning_rate": -1.0},
    {"clip": float("nan")},
]
OWN = {
    "cacd": [
        {"sampling_steps": 0},
        {"sampling_steps": 2000},
        {"timesteps": 1},
        {"batch_slices": 0},
        {"unshuffle": 0},
        {"widths": ()},
        {"max_offset": 0},
        {"corrections": -1},
        {"temperature": 0.0},
        {"anatomy_smoothing": 1e12},
    ],
    "patch_diffusion": [
        {"sampling_steps": 0},
        {"unshuffle": 0},
        {"patch": (0, 0, 0)},
        {"patch": (-8, -8, -8)},
        {"sigma": 0.0},
        {"sigma": 1e12},
    ],
    "disarm": [{"image_widths": ()}, {"scanner_widths": ()}, {"window": 0}],
    "ihf": [{"patches": 0}, {"batch_slices": 0}, {"pyramid": (300_000, 300_000)}, {"hidden": ()}],
}


@pytest.mark.parametrize(("name", "values"), [(name, values) for name, own in OWN.items()
                                              for values in SHARED + own])
def test_what_cannot_be_is_refused(name, values):
    with pytest.raises(UsageError, match=next(iter(values)).partition("_")[0]):
        registry.get(name).config_from(values)


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("preset", ["tiny", "small", "paper"])
def test_presets_are_accepted(name, preset):
    features = {"vgg": "none"} if name == "ihf" else {}
    registry.get(name).config_from({"preset": preset, **features})
