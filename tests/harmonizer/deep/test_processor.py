"""What a processor can do decides how fast a network is, and must not decide what it says."""

from __future__ import annotations

import pytest
import torch

from harmonizer.deep.processor import full_precision, trains_in_bf16


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
