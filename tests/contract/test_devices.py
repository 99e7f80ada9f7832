"""Networks on another device than the CPU, as on a GPU: nothing stays behind, bfloat16 trains."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from harmonizer.methods import registry
from tests.contract.brains import at_site_b, brain_of
from tests.pretended_device import pretended_device

LEARNED = sorted(name for name in registry.BUILT_IN if registry.get(name).capabilities.trained)


def fitted(name, cohort, device):
    kind = registry.get(name)
    backend = kind(kind.config_from({"preset": "tiny", "steps": 2, "validate_every": 2,
                                     "validation_cases": 1, "learning_rate": 1e-4}))
    backend.resources = dataclasses.replace(backend.resources, device=device, precision="bf16")
    backend = backend.fit(cohort, seed=1)
    backend.residual_weight_ = 1.0
    return backend


def test_a_mixture_of_devices_is_found():
    with pretended_device() as device:
        layer = torch.nn.Conv2d(1, 2, 3).to(device)
        one, some = torch.zeros(1, 1, 4, 4), torch.tensor([0], device=device)
        assert layer(one.to(device)).device.type == device
        assert (layer.weight + torch.tensor(1.0)).device.type == device  # a CPU scalar is taken
        for mixed in (lambda: layer(one), lambda: one[some], lambda: one.to(device) + one,
                      lambda: one.to(device).numpy()):
            with pytest.raises((RuntimeError, TypeError)):
                mixed()


@pytest.mark.parametrize("name", LEARNED)
def test_a_method_trains_and_harmonizes_there(name, cohort):
    stranger = at_site_b(brain_of(50))
    usual = fitted(name, cohort, "cpu")
    expected = usual.harmonize(stranger, usual.target("A"), seed=3).in_mask()
    with pretended_device() as device:
        backend = fitted(name, cohort, device).on(device)
        moved = {p.device.type for n in backend.model_.networks.values() for p in n.parameters()}
        after = backend.harmonize(stranger, backend.target("A"), seed=3).in_mask()
        if backend.capabilities.reference_target:
            backend.enroll(cohort.scans[4:5], "mine")
        state = backend._state()
    assert moved == {device}
    assert all(isinstance(value, np.ndarray) for value in state.values())
    np.testing.assert_allclose(after, expected, atol=1e-3 * np.ptp(expected))
