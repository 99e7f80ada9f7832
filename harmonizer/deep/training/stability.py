"""Detection of diverging adversarial trainings.

The losses of a GAN do not fall, so they do not show whether a training works. `StabilityMonitor`
tracks running means of quantities that do: reconstruction errors and discriminator accuracies.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from ...errors import InternalError

__all__ = ["StabilityMonitor"]

LOGGER = logging.getLogger("harmonizer")


@dataclass
class StabilityMonitor:
    """Running means of named quantities, with limits.

    Attributes
    ----------
    window : int
        Steps of a running mean; nothing is checked before so many steps.
    factor : float
        A loss has diverged when its mean exceeds its minimum by this factor ...
    floor : float
        ... and this value.
    """

    window: int = 200
    factor: float = 4.0
    floor: float = 0.1
    _values: dict[str, deque[float]] = field(default_factory=dict)
    _minimum: dict[str, float] = field(default_factory=dict)
    _warned: set[str] = field(default_factory=set)

    def mean(self, name: str, value: float) -> float | None:
        """Add a value and return the mean of the last `window`; None before there are as many."""
        values = self._values.setdefault(name, deque(maxlen=self.window))
        values.append(float(value))
        return float(np.mean(values)) if len(values) == self.window else None

    def check_divergence(self, name: str, value: float) -> None:
        """Add the value of a loss and check that its mean has not risen again.

        Raises
        ------
        InternalError
            If the mean exceeds both `floor` and `factor` times its minimum.
        """
        mean = self.mean(name, value)
        if mean is None:
            return
        minimum = self._minimum[name] = min(mean, self._minimum.get(name, np.inf))
        if mean > max(self.factor * minimum, self.floor):
            raise InternalError(
                f"training diverged: {name} was {minimum:.4f} and is {mean:.4f} again (means over "
                f"{self.window} steps). Lower the learning rate or the adversarial weight."
            )

    def warn_outside_range(self, name: str, value: float, low: float, high: float, advice: str
                           ) -> None:
        """Add a value and log a warning, once, if its mean leaves [low, high]."""
        mean = self.mean(name, value)
        if mean is not None and not low <= mean <= high and name not in self._warned:
            self._warned.add(name)
            LOGGER.warning("training: %s is %.3g over %d steps, expected %g to %g. %s",
                           name, mean, self.window, low, high, advice)
