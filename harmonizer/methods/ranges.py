"""What the numbers of a config may be: a stranger's model folder, or a slip, says anything."""

from __future__ import annotations

from typing import Any

__all__ = ["WIDEST", "at_least", "at_most", "check_sampling"]

WIDEST = 100.0  # voxels; sigma of any smoothing


def at_least(config: Any, least: float, *names: str) -> None:
    """ValueError where a number, or one of a tuple's, is less, or a tuple is empty."""
    for name in names:
        value = getattr(config, name)
        several = value if isinstance(value, tuple) else (value,)
        if not several or not all(one >= least for one in several):
            raise ValueError(f"{name}: expected {least:g} or more, got {value}.")


def at_most(config: Any, most: float, *names: str) -> None:
    """ValueError where a number, or one of a tuple's, is more: memory goes with it."""
    for name in names:
        value = getattr(config, name)
        if not all(one <= most for one in (value if isinstance(value, tuple) else (value,))):
            raise ValueError(f"{name}: expected {most:g} or less, got {value}.")


def check_sampling(times: int, count: int) -> None:
    """ValueError where so many sampling steps are not among the times of a diffusion."""
    if times < 2 or not 1 <= count <= times:
        raise ValueError("times is 2 or more and sampling_steps lies in 1 to times, got "
                         f"{times} and {count}.")
