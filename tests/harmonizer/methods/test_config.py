"""Configs of unknown origin: values of another type or absurd size are refused by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest

from harmonizer.errors import UsageError
from harmonizer.methods import registry
from harmonizer.methods.config import check_types
from harmonizer.methods.learned.config import PRESETS
from harmonizer.methods.learned.persistence import check_weights


@dataclass(frozen=True)
class Config:
    name: str = "x"
    steps: int = 1
    blocks: int = 1
    rate: float = 0.5
    kept: bool = True
    widths: tuple[int, ...] = (8,)
    patch: tuple[int, int, int] | None = None
    way: Literal["step", "end"] = "step"


@pytest.mark.parametrize("values", [
    {}, {"name": "a", "steps": -3, "rate": 1, "kept": False, "widths": ()}, {"patch": None},
    {"patch": (1, 2, 3), "way": "end", "rate": 1e-9, "blocks": 64},
], ids=str)
def test_what_fits(values: dict[str, Any]) -> None:
    check_types(Config, values)


@pytest.mark.parametrize("name, value", [
    ("name", 3), ("name", "x" * 4097), ("name", None), ("steps", 1.0), ("steps", True),
    ("steps", "3"), ("steps", 10_000_001), ("steps", 10 ** 400), ("blocks", 65),
    ("rate", float("nan")), ("rate", float("inf")), ("rate", -1e300), ("rate", 10 ** 400),
    ("rate", "fast"), ("rate", True), ("kept", 1), ("kept", "yes"), ("widths", 8),
    ("widths", (8, 8.5)), ("widths", (8,) * 65), ("widths", ((8,),)), ("patch", (1, 2)),
    ("patch", {}), ("way", "middle"), ("way", ["step"]),
], ids=lambda x: f"{x!r:.20}")
def test_what_does_not_fit(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} is .{{1,85}}, expected ."):
        check_types(Config, {name: value})


@pytest.mark.parametrize("name", sorted(registry.BUILT_IN))
def test_the_presets_of_every_method_fit(name: str) -> None:
    kind = registry.get(name)
    for preset in PRESETS if kind.capabilities.trained else ("none",):
        values = {} if preset == "none" else {"preset": preset}
        values |= {"vgg": "none"} if name == "ihf" else {}  # the paper's features need a file
        config = kind.config_from(values)
        check_types(type(config), vars(config))


def test_a_network_of_a_terabyte_is_not_built() -> None:
    """Its shapes are compared with those of the file before there is memory for them."""
    kind = registry.get("cacd")
    model = kind(kind.config_from({"preset": "tiny", "widths": [1_000_000, 1_000_000]})).model_
    with pytest.raises(ValueError, match="has shape|is missing|is extra|more arrays than the"):
        check_weights(model, {"denoiser.x": np.zeros(1, np.float32)} | {
            f"denoiser.{n}": np.zeros(1, np.float32) for n in range(500)})


def test_the_message_names_method_and_option() -> None:
    with pytest.raises(UsageError, match="^cacd: widths is 'wide', expected tuple"):
        registry.get("cacd").config_from({"widths": "wide"})
