"""The way from an image to the network and back: geometry, masks, refusals.

The network here is one that knows a ball by its brightness, so that every answer can be foretold.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harmonizer.errors import InputError
from harmonizer.segmentation.network import fold
from harmonizer.segmentation.predict import segment
from harmonizer.volume import Volume


class ByBrightness(torch.nn.Module):
    """Says white matter above 0.8, cortex above 0.45, CSF above 0.15, else outside."""

    classes = 9
    multiple = 16

    def features(self, image: torch.Tensor) -> torch.Tensor:
        return fold(image)

    def head(self, features: torch.Tensor) -> torch.Tensor:
        logits = torch.full((1, 9, *features.shape[1:]), -30.0)
        for below, above, which in ((-1, 0.15, 0), (0.15, 0.45, 1), (0.45, 0.8, 3), (0.8, 2, 4)):
            logits[0, which][(features[0] > below) & (features[0] <= above)] = 30
        return logits.flatten(1, 2)


def ball(shape: tuple[int, ...], affine: np.ndarray, centre=(3.0, -2.0, 5.0)) -> Volume:
    """Shells of 12, 20, 26 mm around a world point: white matter, cortex, CSF; a rim; air."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    radius = np.linalg.norm(world - centre, axis=-1)
    data = np.zeros(shape, np.float32)
    for limit, value in ((27, 20.0), (26, 300.0), (20, 600.0), (12, 1000.0)):
        data[radius < limit] = value
    return Volume(data, affine)


def centred(axes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = axes
    affine[:3, 3] = -axes @ ((np.array(shape) - 1) / 2)
    return affine


def rotated(degrees: float) -> np.ndarray:
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


GRIDS = {
    "plain": (np.eye(3), (80, 80, 80)),
    "flipped": (np.diag([-1.0, 1, -1]), (80, 80, 80)),
    "permuted": (np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]), (80, 84, 88)),
    "anisotropic": (np.diag([0.8, 1.0, 1.6]), (100, 80, 50)),
    "oblique": (rotated(25), (90, 90, 80)),
}


@pytest.mark.parametrize("name", GRIDS)
def test_tissues_lie_where_they_are_on_every_grid(name: str) -> None:
    axes, shape = GRIDS[name]
    volume = ball(shape, centred(axes, shape))
    found = segment(volume, network=ByBrightness())
    for tissue, value in (("WM", 1000), ("GM", 600), ("CSF", 300)):
        truth, said = volume.data == value, found.tissues[tissue] > 0.5
        assert found.tissues[tissue].shape == volume.shape
        assert 2 * (truth & said).sum() / (truth.sum() + said.sum()) > 0.88, tissue
    inside = volume.data > 200
    assert 2 * (inside & found.brain).sum() / (inside.sum() + found.brain.sum()) > 0.96
    assert (found.classes[volume.data == 1000] == 4).mean() > 0.9


def test_shares_sum_to_one_in_the_brain_and_to_nothing_outside() -> None:
    found = segment(ball((80, 80, 80), centred(np.eye(3), (80,) * 3)), network=ByBrightness())
    total = sum(found.tissues.values())
    np.testing.assert_allclose(total[found.classes > 0], 1, atol=1e-5)
    assert float(np.abs(total[~found.brain]).max()) == 0


def test_a_given_mask_limits_tissue_but_not_the_networks_own_brain() -> None:
    volume = ball((80, 80, 80), centred(np.eye(3), (80,) * 3))
    half = (volume.data > 200) & (np.arange(80) < 43)[:, None, None]
    found = segment(volume.with_mask(half), network=ByBrightness())
    assert sum(found.tissues.values())[~half].max() == 0
    assert (found.classes[~half] == 0).all()
    assert (found.brain & ~half).sum() > 1000


def test_a_speck_far_away_is_no_brain() -> None:
    volume = ball((120, 80, 80), centred(np.eye(3), (120, 80, 80)))
    data = volume.data.copy()
    data[2:8, 2:8, 2:8] = 1000
    found = segment(volume.with_data(data), network=ByBrightness())
    assert not found.brain[2:8, 2:8, 2:8].any()
    assert found.brain.sum() > 50_000


def test_a_mirrored_image_gives_the_mirrored_answer() -> None:
    volume = ball((80, 80, 80), centred(np.eye(3), (80,) * 3))
    mirror = Volume(volume.data[::-1], np.diag([-1.0, 1, 1, 1]) @ volume.affine @ _flip(80))
    one = segment(volume, network=ByBrightness())
    two = segment(mirror, network=ByBrightness())
    assert (one.classes == two.classes[::-1]).mean() > 0.98


def _flip(count: int) -> np.ndarray:
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = count - 1
    return flip


@pytest.mark.parametrize("volume, word", [
    (Volume(np.full((20, 20, 20), 5.0), np.eye(4)), "constant"),
    (Volume(np.ones((20, 20, 20)), np.eye(4), np.zeros((20, 20, 20))), "mask is empty"),
])
def test_what_cannot_be_segmented_is_refused(volume: Volume, word: str) -> None:
    with pytest.raises(InputError, match=word):
        segment(volume, network=ByBrightness())


def test_a_network_that_sees_no_brain_says_so() -> None:
    class Blind(ByBrightness):
        def head(self, features: torch.Tensor) -> torch.Tensor:
            logits = torch.zeros((1, 9, *features.shape[1:]))
            logits[:, 0] = 30
            return logits.flatten(1, 2)

    volume = ball((60, 60, 60), centred(np.eye(3), (60,) * 3))
    with pytest.raises(InputError, match="looks like a brain"):
        segment(volume, network=Blind())
