"""Convolutions of one small image in two halves: the same numbers and gradients, another way."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from harmonizer.deep.networks import convolution
from harmonizer.deep.networks.convolution import Conv3d, conv3d

SHAPES = [(8, 9, 10), (7, 6, 5), (3, 4, 4), (2, 4, 4), (1, 3, 4)]
KERNELS = [(3, 1, 1), (3, 2, 1), (3, 1, 0), (2, 2, 0)]  # size, stride, padding


@pytest.mark.parametrize("shape, how", [(s, k) for s in SHAPES for k in KERNELS
                                        if min(s) + 2 * k[2] >= k[0]])
def test_halves_are_the_whole(shape, how) -> None:
    kernel, stride, padding = how
    torch.manual_seed(0)
    weight, bias = torch.randn(6, 4, kernel, kernel, kernel), torch.randn(6)
    answers = []
    for convolve in (conv3d, functional.conv3d):
        x = torch.randn(1, 4, *shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
        w = weight.clone().requires_grad_()
        y = convolve(x, w, bias, stride=stride, padding=padding)
        y.square().sum().backward()
        answers.append((y.detach(), x.grad, w.grad))
    for ours, theirs in zip(*answers):
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_torch_is_given_two_images_of_what_it_would_unroll(monkeypatch) -> None:
    given = []

    def convolve(x, *others, **named):
        given.append(len(x))
        return functional.conv3d(x, *others, **named)

    monkeypatch.setattr(convolution, "functional", _With(functional, conv3d=convolve))
    layer, small, large = Conv3d(8, 8, 3, padding=1), (10, 10, 10), (60, 60, 2)
    layer(torch.zeros(1, 8, *small))
    layer(torch.zeros(2, 8, *small))
    layer(torch.zeros(1, 8, *large))
    Conv3d(8, 8, 1)(torch.zeros(1, 8, *small))
    Conv3d(8, 8, 7, padding=3)(torch.zeros(1, 8, *small))
    layer.double()(torch.zeros(1, 8, *small, dtype=torch.float64))
    assert given == [2, 2, 1, 1, 1, 1]


def test_torch_still_has_the_limit_that_this_is_about() -> None:
    """What runs in torch, by its own record; a torch that changed it makes the halves needless."""

    def ways(x: torch.Tensor) -> set[str]:
        weight = torch.randn(8, 8, 3, 3, 3)
        with torch.profiler.profile() as record:
            functional.conv3d(x, weight, padding=1)
        return {event.key for event in record.key_averages()}

    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    assert "aten::slow_conv3d_forward" in ways(torch.randn(1, 8, 32, 80, 4))
    assert "aten::mkldnn_convolution" in ways(torch.randn(1, 8, 33, 80, 4))
    assert "aten::mkldnn_convolution" in ways(torch.randn(2, 8, 10, 10, 4))


class _With:
    """A module with some of its names replaced."""

    def __init__(self, module, **names) -> None:
        self.module = module
        self.__dict__.update(names)

    def __getattr__(self, name):
        return getattr(self.module, name)
