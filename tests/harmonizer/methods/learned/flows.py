"""Networks of IHF that change much, without a training."""

from __future__ import annotations

from harmonizer.methods.learned.ihf.backend import Ihf


def shaken(fitted: Ihf, seed: int) -> Ihf:
    """A copy of a fitted backend with new networks and random weights in AAN's heads."""
    import torch

    backend = Ihf(fitted.config)
    backend.__dict__.update(fitted.__dict__)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        backend.networks_ = backend._build()
        for name, parameter in backend.networks_["flow"].named_parameters():
            if "heads" in name:
                torch.nn.init.normal_(parameter, 0, 0.3)
    backend.networks_["flow"].eval().requires_grad_(False)
    return backend
