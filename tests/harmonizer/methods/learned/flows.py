"""Networks of IHF that change much, without a training."""

from __future__ import annotations

import dataclasses
from copy import copy

import torch

from harmonizer.methods.learned.ihf.backend import Ihf


def shaken(fitted: Ihf, seed: int) -> Ihf:
    """A copy of a fitted backend with new networks and random weights in AAN's heads."""
    backend = copy(fitted)
    model = backend.model_ = copy(fitted.model_)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model.networks = model.build_networks()
        for name, parameter in model.networks["flow"].named_parameters():
            if "heads" in name:
                torch.nn.init.normal_(parameter, 0, 0.3)
    model.networks["flow"].eval().requires_grad_(False)
    return backend


def with_config(fitted: Ihf, **values) -> Ihf:
    """A copy of a fitted backend with the same networks and other settings."""
    backend = copy(fitted)
    backend.config = dataclasses.replace(fitted.config, **values)
    backend.model_ = copy(fitted.model_)
    backend.model_.config = backend.config
    return backend
