"""Networks: the published sizes, zero outputs before training, modulation."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from harmonizer.deep.networks.blocks import Attention, ResidualBlock, pixel_shuffle, pixel_unshuffle
from harmonizer.deep.networks.encoder import SemanticEncoder
from harmonizer.deep.networks.unet import UNet


def test_the_papers_networks_have_the_papers_sizes():
    """20.3 M parameters, 67 GFLOP for a 192 x 224 slice; encoder 9.2 M."""
    with torch.device("meta"):
        unet = UNet(2, widths=(32, 64, 128, 256), blocks=2, time=512, style=512)
        encoder = SemanticEncoder(heads={"contrast": 256, "anatomy": 256})
        with FlopCounterMode(display=False) as counter:
            unet(torch.zeros(1, 1, 192, 224), torch.zeros(1), torch.zeros(1, 512))
    assert sum(p.numel() for p in unet.parameters()) / 1e6 == pytest.approx(20.3, abs=0.05)
    assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(9.2, abs=0.05)
    assert counter.get_total_flops() / 1e9 == pytest.approx(67, abs=0.5)


@pytest.mark.parametrize("dims, sides", [(2, (16, 24)), (3, (8, 16, 8))])
@pytest.mark.parametrize("factor", [1, 2])
def test_a_new_unet_outputs_zeros_and_keeps_the_shape(dims, sides, factor):
    unet = UNet(dims, 3, 2, (8, 16), 1, time=16, style=6, style_shift=True,
                attention=(False, True), unshuffle=factor)
    output = unet(torch.randn(2, 3, *sides), torch.tensor([0, 9]), torch.randn(2, 6))
    assert output.shape == (2, 2, *sides) and not output.any()
    assert unet.multiple == 2 * factor
    with pytest.raises(ValueError, match="multiples of"):
        unet(torch.randn(2, 3, *[s + 1 for s in sides]), torch.tensor([0, 9]), torch.randn(2, 6))


def test_every_parameter_of_a_unet_can_learn():
    torch.manual_seed(0)
    unet = UNet(2, 1, 1, (8, 16), 1, time=16, style=6, attention=(False, True), dropout=0.1)
    for p in unet.parameters():  # past the zeros of the start
        torch.nn.init.normal_(p, std=0.1)
    unet(torch.randn(2, 1, 8, 8), torch.tensor([3, 5]), torch.randn(2, 6)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in unet.parameters())


@pytest.mark.parametrize("dims", [2, 3])
def test_pixel_unshuffle_is_undone_and_keeps_blocks_together(dims):
    x = torch.arange(2 * 3 * 8 ** dims, dtype=torch.float32).reshape(2, 3, *[8] * dims)
    unshuffled = pixel_unshuffle(x, 2)
    assert unshuffled.shape == (2, 3 * 2 ** dims, *[4] * dims)
    block = x[(0, 1, *[slice(2, 4)] * dims)].flatten()
    torch.testing.assert_close(unshuffled[(0, slice(2**dims, 2 ** (dims + 1)), *[1] * dims)], block)
    torch.testing.assert_close(pixel_shuffle(unshuffled, 2), x)
    assert pixel_unshuffle(x, 1) is x and pixel_shuffle(x, 1) is x


def test_scale_only_style_cannot_add():
    """CACD: h (1 + s_c): where the normalized features are zero, no style shows."""
    torch.manual_seed(0)
    block = ResidualBlock(2, 8, 8, style=4)
    block.norm2 = torch.nn.Identity()
    torch.nn.init.zeros_(block.conv1.weight), torch.nn.init.zeros_(block.conv1.bias)
    torch.nn.init.normal_(block.last[-1].weight)
    x = torch.randn(1, 8, 4, 4)
    torch.testing.assert_close(block(x, None, torch.randn(1, 4)), block(x, None, torch.zeros(1, 4)))
    torch.nn.init.normal_(block.conv1.weight)
    assert not torch.equal(block(x, None, torch.ones(1, 4)), block(x, None, torch.zeros(1, 4)))


def test_attention_starts_as_identity():
    x = torch.randn(2, 16, 4, 4, 4)
    assert torch.equal(Attention(3, 16)(x), x)


def test_masked_pool_does_not_see_air():
    torch.manual_seed(0)
    encoder = SemanticEncoder(2, 1, (8, 16), 1, heads={"c": 3}).eval()
    for module in encoder.modules():  # per-place normalization, so that air cannot enter by it
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda x: x
    x = torch.randn(1, 1, 16, 16)
    wide = torch.cat([x, torch.zeros(1, 1, 48, 16)], dim=2)
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :2, :] = 1  # far enough from the seam
    wide_mask = torch.cat([mask, torch.zeros(1, 1, 48, 16)], dim=2)
    torch.testing.assert_close(encoder(x, mask)["c"], encoder(wide, wide_mask)["c"],
                               rtol=1e-4, atol=1e-5)
    assert not torch.allclose(encoder(x)["c"], encoder(wide)["c"], rtol=1e-3)


def test_batch_of_n_is_n_batches_of_one():
    torch.manual_seed(0)
    unet = UNet(2, 1, 1, (8, 16), 1, time=16, style=6).eval()
    torch.nn.init.normal_(unet.exit[-1].weight)
    x, t, z = torch.randn(3, 1, 8, 8), torch.tensor([1, 2, 3]), torch.randn(3, 6)
    alone = torch.cat([unet(x[i:i + 1], t[i:i + 1], z[i:i + 1]) for i in range(3)])
    torch.testing.assert_close(unet(x, t, z), alone, rtol=1e-4, atol=1e-5)
