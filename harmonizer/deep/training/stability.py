"""An eye on trainings with adversaries: means over the last steps against what was good before.

A GAN's losses do not fall, so nothing in them tells a training that works from one that broke.
`Watch` keeps running means of a few numbers that do: a reconstruction that was learned and is lost
again ends the training (`InternalError`), a number out of its range is told once.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from ...errors import InternalError

__all__ = ["Watch"]

LOGGER = logging.getLogger("harmonizer")


@dataclass
class Watch:
    """Running means of numbers by name.

    Attributes
    ----------
    window : steps that a mean goes over; nothing is judged before there are as many
    factor : a loss is lost when its mean is so many times its least mean
    floor : and above this value
    """

    window: int = 200
    factor: float = 4.0
    floor: float = 0.1
    _seen: dict[str, deque[float]] = field(default_factory=dict)
    _least: dict[str, float] = field(default_factory=dict)
    _told: set[str] = field(default_factory=set)

    def mean(self, name: str, value: float) -> float | None:
        """The mean of the last `window` values with this one, or None before there are as many."""
        seen = self._seen.setdefault(name, deque(maxlen=self.window))
        seen.append(float(value))
        return float(np.mean(seen)) if len(seen) == self.window else None

    def must_stay_learned(self, name: str, value: float) -> None:
        """InternalError if the mean of a loss went back up to `factor` times its least."""
        mean = self.mean(name, value)
        if mean is None:
            return
        least = self._least[name] = min(mean, self._least.get(name, np.inf))
        if mean > max(self.factor * least, self.floor):
            raise InternalError(
                f"training diverged: {name} was {least:.4f} and is {mean:.4f} again (means over "
                f"{self.window} steps). Lower the learning rate or the adversarial weight."
            )

    def should_lie(self, name: str, value: float, low: float, high: float, advice: str) -> None:
        """A warning, once, if the mean of a number leaves [low, high]."""
        mean = self.mean(name, value)
        if mean is not None and not low <= mean <= high and name not in self._told:
            self._told.add(name)
            LOGGER.warning("training: %s is %.3g over %d steps, expected %g to %g. %s",
                           name, mean, self.window, low, high, advice)
