"""VGG-19's first layers: torchvision's by its names, and files that are not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from harmonizer.deep.networks.vgg import IMAGE_MEAN, IMAGE_STD, WIDTHS, VggFeatures, read_vgg
from harmonizer.errors import InputError

PUBLISHED = (64, 64, "M", 128, 128, "M", 256, 256, 256, 256, "M", 512)  # configuration E


def torchvisions() -> nn.Sequential:
    """The layers in the order, and so under the numbers, that torchvision gives them."""
    layers, before = [], 3
    for width in PUBLISHED:
        if width == "M":
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
            before = width
    return nn.Sequential(*layers)


@pytest.fixture
def drawn(tmp_path):
    """Random weights in a file, under torchvision's names, with others beside them."""
    torch.manual_seed(0)
    whole = torchvisions()
    arrays = {f"features.{name}": value for name, value in whole.state_dict().items()}
    save_file({**arrays, "classifier.0.weight": torch.zeros(2, 2)}, tmp_path / "vgg.safetensors")
    return whole, tmp_path / "vgg.safetensors"


def test_features_are_those_of_the_published_layers(drawn):
    whole, path = drawn
    network = VggFeatures()
    network.load_state_dict(read_vgg(path))
    x = torch.rand(2, 3, 32, 40) * 2 - 1
    found = network(x)
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGE_MEAN, IMAGE_STD))
    y = ((x + 1) / 2 - mean) / std
    for number, layer in enumerate(whole):
        y = layer(y)
        if number in (1, 6, 11, 20):
            torch.testing.assert_close(found[(1, 6, 11, 20).index(number)], y)
    assert tuple(f.shape[1] for f in found) == WIDTHS
    assert [f.shape[2:] for f in found] == [(32, 40), (16, 20), (8, 10), (4, 5)]
    assert len(network(x, 2)) == 2
    assert not any(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("damage", ["missing", "shape", "nan", "text"])
def test_another_file_is_refused_by_name(drawn, tmp_path, damage):
    arrays = {f"features.{k}": v for k, v in drawn[0].state_dict().items()}
    name = "features.7.bias"
    path = tmp_path / "other.safetensors"
    if damage == "text":
        path.write_text("no weights")
    else:
        value = arrays.pop(name)
        if damage != "missing":
            arrays[name] = value[:5].clone() if damage == "shape" else value * np.nan
        save_file(arrays, path)
    with pytest.raises(InputError, match="VGG-19" if damage == "text" else name):
        read_vgg(path)
    with pytest.raises(InputError, match="safetensors file"):
        read_vgg(tmp_path / "absent.safetensors")
