"""LPIPS: the published network with any weights, and what is refused."""
from __future__ import annotations

import numpy as np
import pytest
import torch

from harmonizer.errors import InputError
from harmonizer.evaluation.metrics.perceptual import SHAPES, STEPS, Lpips, load_lpips


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights under the published names; linear layers are not negative."""
    rng = np.random.default_rng(seed)
    found = {}
    for i, (number, shape) in enumerate(SHAPES.items()):
        found[f"features.{number}.weight"] = rng.normal(0, np.prod(shape[1:]) ** -0.5, shape)
        found[f"features.{number}.bias"] = rng.normal(0, 0.1, shape[0])
        found[f"lin{i}.model.1.weight"] = rng.uniform(0, 1, (1, shape[0], 1, 1))
    return {name: array.astype(np.float32) for name, array in found.items()}


def alexnet() -> torch.nn.Sequential:
    """torchvision's `alexnet().features`, which is not installed, layer by layer."""
    parts: list[torch.nn.Module] = []
    for number, shape in SHAPES.items():
        if number in (3, 6):
            parts.append(torch.nn.MaxPool2d(3, 2))
        parts += [torch.nn.Conv2d(shape[1], shape[0], shape[2], *STEPS[number]), torch.nn.ReLU()]
    return torch.nn.Sequential(*parts)


def test_it_is_torchmetrics(monkeypatch):
    theirs = pytest.importorskip("torchmetrics.functional.image.lpips")
    given = {name: torch.from_numpy(array) for name, array in weights().items()}
    backbone = alexnet()
    backbone.load_state_dict({k.removeprefix("features."): v for k, v in given.items()
                              if k.startswith("features")})
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda net, pretrained: backbone)
    net = theirs._LPIPS(pretrained=False, net="alex", use_dropout=True, eval_mode=True)
    for i in range(5):
        getattr(net, f"lin{i}").load_state_dict({"model.1.weight": given[f"lin{i}.model.1.weight"]})
    one, two = torch.rand(2, 2, 3, 70, 80, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        expected = net(one, two).flatten()
    assert expected.min() > 0.01
    torch.testing.assert_close(Lpips(weights()).slices(one, two), expected, rtol=1e-3, atol=1e-5)


def test_volumes_are_seen_slice_by_slice_and_inside_the_mask():
    rng = np.random.default_rng(0)
    image = rng.uniform(10, 90, (40, 40, 40))
    mask = np.zeros(image.shape, bool)
    mask[5:35, 5:35, 5:35] = True
    distance, spacing = Lpips(weights()), (4.0, 4.0, 4.0)
    assert distance(image, image, mask, 100.0, spacing) == 0.0
    outside = np.where(mask, image, 55.0)
    assert distance(image, outside, mask, 100.0, spacing) == 0.0
    little, much = (distance(image, image + rng.normal(0, sd, image.shape), mask, 100.0, spacing)
                    for sd in (2, 20))
    assert 0 < little < 0.5 * much


def test_files_that_are_none_are_explained(tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "alex.safetensors"
    save_file(weights(), path)
    assert isinstance(load_lpips(path), Lpips)
    broken = {**weights(), "features.3.weight": np.zeros((2, 2), np.float32)}
    save_file(broken, tmp_path / "broken.safetensors")
    with pytest.raises(InputError, match=r"features.3.weight of shape \(192, 64, 5, 5\)"):
        load_lpips(tmp_path / "broken.safetensors")
    (tmp_path / "text").write_text("no weights")
    with pytest.raises(InputError, match="expected a safetensors file with AlexNet's"):
        load_lpips(tmp_path / "text")
