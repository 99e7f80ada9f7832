"""What a processor can do decides how fast a network is, and must not decide what it says."""

from __future__ import annotations

import pytest
import torch

from harmonizer.deep.processor import full_precision, gpu_problem, trains_in_bf16


@pytest.mark.parametrize(("capability", "quicker"), [((7, 5), False), ((8, 0), True),
                                                     ((9, 0), True)])
def test_a_gpu_before_ampere_trains_in_single_precision(capability, quicker, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert trains_in_bf16("cuda:0") is quicker


@pytest.mark.parametrize("usual", [True, False])
def test_full_precision_ends_as_it_was(usual, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", usual)
    with pytest.raises(KeyError), full_precision():
        assert not torch.backends.cudnn.allow_tf32
        raise KeyError
    assert torch.backends.cudnn.allow_tf32 is usual


@pytest.mark.parametrize(("capability", "built_for", "works"), [
    ((8, 6), ["sm_80"], True),  # later minor version of the same architecture
    ((8, 0), ["sm_86"], False),
    ((9, 0), ["sm_80"], False),
    ((9, 0), ["sm_80", "compute_80"], True),  # compiled by the driver
    ((6, 1), ["sm_75", "sm_90", "compute_90"], False),
    ((12, 0), ["sm_100", "sm_120"], True),
    ((10, 0), ["sm_120"], False),
    ((9, 0), ["sm_90a"], True),
    ((7, 0), [], False),
])
def test_gpu_is_checked_against_the_architectures_of_torch(
    monkeypatch, capability, built_for, works
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "GPU")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built_for)
    assert (gpu_problem() is None) == works
