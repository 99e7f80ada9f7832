"""DISARM's networks: shapes of any even size, labels and styles heard, nothing before training."""

from __future__ import annotations

import pytest
import torch

from harmonizer.deep.networks.blocks import masked_mean
from harmonizer.deep.networks.disentangling import (
    AnatomyEncoder,
    CodeDiscriminator,
    Generator,
    ImageDiscriminator,
    ScannerEncoder,
)

LABEL = torch.eye(3)[[0, 2]]


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        yield


def loud(network: torch.nn.Module) -> torch.nn.Module:
    """Past the zeros that networks start with."""
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return network.eval()


@pytest.mark.parametrize("unshuffle", [False, True])
@pytest.mark.parametrize("sides", [(8, 10, 6), (2, 2, 2)])
def test_an_image_of_even_sides_is_halved_and_comes_back(unshuffle, sides):
    x = torch.randn(2, 1, *sides)
    encoder = AnatomyEncoder(3, 8, 1, code=5, unshuffle=unshuffle)
    generator = Generator(3, 5, 4, 3, 8, 1, unshuffle=unshuffle)
    code = encoder(x)
    assert code.shape == (2, 5, *(s // 2 for s in sides))
    image = generator(code, torch.randn(2, 4), LABEL)
    assert image.shape == x.shape and not image.any()
    mean, logvar = ScannerEncoder(3, 3, (4, 8), code=4)(x, LABEL)
    assert mean.shape == logvar.shape == (2, 4)
    real, named = ImageDiscriminator(3, 3, (4, 8))(x)
    assert real.shape[:2] == (2, 1) and named.shape == (2, 3)
    assert CodeDiscriminator(3, 5, 3, (4,))(code).shape == (2, 3)


def test_the_code_is_noisy_in_training_alone():
    x = torch.randn(1, 1, 16, 16, 16)
    encoder = AnatomyEncoder(3, 8, 1, noise=0.5)
    noise = encoder(x) - encoder.code(x)
    assert noise.std().item() == pytest.approx(0.5, rel=0.1)
    encoder.eval()
    torch.testing.assert_close(encoder(x), encoder.code(x))


@pytest.mark.parametrize("unshuffle", [False, True])
def test_style_and_label_are_heard_inside_the_image(unshuffle):
    """Constant planes before an instance norm act only at the border and in the last layer."""
    generator = loud(Generator(3, 4, 4, 3, 8, 2, unshuffle=unshuffle))
    code, style = torch.randn(2, 4, 8, 8, 8), torch.randn(2, 4)
    one = generator(code, style, LABEL)
    for other in (generator(code, style + 1, LABEL), generator(code, style, LABEL.roll(1, 0))):
        change = (other - one)[..., 5:11, 5:11, 5:11]
        assert change.std().item() > 1e-3  # more than one brightness


def test_a_constant_plane_before_an_instance_norm_is_not_heard():
    """Why the generator is modulated: the finding, in three lines."""
    layer = torch.nn.Conv3d(2, 4, 3)
    image = torch.randn(1, 1, 10, 10, 10)
    seen = [torch.nn.functional.instance_norm(layer(torch.cat([image, torch.full_like(image, v)],
                                                              dim=1))) for v in (0.0, 3.0)]
    torch.testing.assert_close(*seen, rtol=0, atol=1e-5)


def test_discriminators_answer_to_brain_and_not_to_air():
    critic, mask = loud(ImageDiscriminator(3, 3, (4,))), torch.zeros(1, 1, 16, 16, 16)
    mask[..., :8] = 1
    x = torch.randn(1, 1, 16, 16, 16)
    other = torch.where(torch.arange(16) > 11, torch.randn_like(x), x)
    torch.testing.assert_close(critic(x, mask)[1], critic(other, mask)[1], rtol=0, atol=1e-4)
    assert (critic(x)[1] - critic(other)[1]).abs().max() > 1e-3


def test_brain_mean_is_the_mean_over_the_brain():
    h = torch.arange(8.0).reshape(1, 1, 2, 2, 2)
    mask = torch.zeros(1, 1, 4, 4, 4)
    mask[..., 2:] = 1  # the places with odd numbers
    assert masked_mean(h, mask).item() == pytest.approx(4.0, abs=1e-4)
    assert masked_mean(h, None).item() == pytest.approx(3.5, abs=1e-6)
    assert torch.isfinite(masked_mean(h, torch.zeros_like(mask))).all()
