"""Tests of prediction: geometry, masks, test-time augmentation and errors.

The networks here classify by brightness, so the expected result is known.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harmonizer.deep.networks.blocks import pixel_unshuffle
from harmonizer.errors import InputError
from harmonizer.segmentation.predict import NetworkSegmenter, low_confidence_warning, segment
from harmonizer.segmentation.refine import MIN_CONTRAST_TO_NOISE, NETWORK_PRIOR
from harmonizer.volume import Volume


class ByBrightness(torch.nn.Module):
    """Says white matter above 0.7, cortex above 0.2, else CSF."""

    classes = 9
    multiple = 16

    def features(self, image: torch.Tensor) -> torch.Tensor:
        return pixel_unshuffle(image, 2)

    def head(self, features: torch.Tensor) -> torch.Tensor:
        logits = torch.full((1, 9, *features.shape[1:]), -30.0)
        for below, above, which in ((-1, 0.2, 1), (0.2, 0.7, 3), (0.7, 2, 4)):
            logits[0, which][(features[0] > below) & (features[0] <= above)] = 30
        return logits.flatten(1, 2)


class Slabs(ByBrightness):
    """Three slabs from back to front, whatever is seen."""

    def features(self, image: torch.Tensor) -> torch.Tensor:
        slabs = torch.linspace(0, 1, image.shape[3])[:, None].expand_as(image[0])[None]
        return pixel_unshuffle(slabs.contiguous(), 2)


def middle(image: torch.Tensor) -> float:
    """How bright an image is beside its middle."""
    return float(image[0, 0][tuple(slice(n // 2 - 8, n // 2 - 4) for n in image.shape[2:])].mean())


class KnowsBrightCores(ByBrightness):
    """As `ByBrightness` where the middle is the brightest; else three slabs, whatever is seen."""

    def features(self, image: torch.Tensor) -> torch.Tensor:
        if middle(image) < 0.7:
            image = torch.linspace(0, 1, image.shape[2])[:, None, None].expand_as(image[0])[None]
        return pixel_unshuffle(image.contiguous(), 2)


class Lopsided(ByBrightness):
    """As `ByBrightness`, but what is seen seems brighter towards one side."""

    def features(self, image: torch.Tensor) -> torch.Tensor:
        return pixel_unshuffle(image * torch.linspace(0.8, 1.2, image.shape[2])[:, None, None], 2)


def ball(shape: tuple[int, ...], affine: np.ndarray, center=(3.0, -2.0, 5.0)) -> Volume:
    """Shells of 12, 20, 26 mm around a world point: white matter, cortex, CSF; air."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    radius = np.linalg.norm(world - center, axis=-1)
    data = np.zeros(shape, np.float32)
    for limit, value in ((26, 300.0), (20, 600.0), (12, 1000.0)):
        data[radius < limit] = value
    return Volume(data, affine, data > 0)


def noisy(volume: Volume) -> Volume:
    """With a standard deviation of 15 inside the mask."""
    noise = np.random.default_rng(0).normal(0, 15, volume.shape)
    return volume.with_data(np.where(volume.mask, volume.data + noise, 0))


def centered(axes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = axes
    affine[:3, 3] = -axes @ ((np.array(shape) - 1) / 2)
    return affine


def rotated(degrees: float) -> np.ndarray:
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def tilted() -> np.ndarray:
    """Axes of no two alike voxel sizes, 8 and 16 degrees off the world's."""
    return rotated(8) @ np.roll(rotated(16), 1, axis=(0, 1)) @ np.diag([0.9, 1.1, 1.3])


GRIDS = {
    "plain": (np.eye(3), (80, 80, 80)),
    "flipped": (np.diag([-1.0, 1, -1]), (80, 80, 80)),
    "permuted": (np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]), (80, 84, 88)),
    "anisotropic": (np.diag([0.8, 1.0, 1.6]), (100, 80, 50)),
    "oblique": (rotated(25), (90, 90, 80)),
    "tilted": (tilted(), (83, 74, 64)),
}


@pytest.mark.parametrize("name", GRIDS)
def test_tissues_lie_where_they_are_on_every_grid(name: str) -> None:
    axes, shape = GRIDS[name]
    volume = ball(shape, centered(axes, shape))
    found = segment(noisy(volume), network=ByBrightness())
    for tissue, value in (("WM", 1000), ("GM", 600), ("CSF", 300)):
        truth, predicted = volume.data == value, found.tissues[tissue] > 0.5
        assert found.tissues[tissue].shape == volume.shape
        assert 2 * (truth & predicted).sum() / (truth.sum() + predicted.sum()) > 0.88, tissue
    assert (found.classes[volume.data == 1000] == 4).mean() > 0.9


def test_probabilities_sum_to_one_in_the_mask_and_to_zero_outside() -> None:
    volume = noisy(ball((80, 80, 80), centered(np.eye(3), (80,) * 3)))
    found = segment(volume, network=ByBrightness())
    total = sum(found.tissues.values())
    np.testing.assert_allclose(total[volume.mask], 1, atol=1e-5)
    assert float(np.abs(total[~volume.mask]).max()) == 0
    assert ((found.classes > 0) == volume.mask).all()


def test_the_negative_is_used_where_the_image_has_low_contrast() -> None:
    volume = ball((80, 80, 80), centered(np.eye(3), (80,) * 3))
    bright = noisy(volume)
    dark = bright.with_data(np.where(bright.mask, 1300 - bright.data, 0))
    answers = [segment(image, network=KnowsBrightCores()) for image in (bright, dark)]
    for found in answers:
        for tissue, value in (("WM", 1000), ("GM", 600), ("CSF", 300)):
            truth, predicted = volume.data == value, found.tissues[tissue] > 0.5
            assert 2 * (truth & predicted).sum() / (truth.sum() + predicted.sum()) > 0.88, tissue


class EitherWay(ByBrightness):
    """As `ByBrightness` where the middle is bright, of the negative where it is dark.

    What it sees always seems a little brighter, so that it errs differently in the two.
    """

    def features(self, image: torch.Tensor) -> torch.Tensor:
        seen = image * 1.3
        return pixel_unshuffle(seen if middle(image) > 0.5 else 1 - seen, 2)


def test_an_image_and_its_negative_have_one_segmentation(monkeypatch) -> None:
    monkeypatch.setattr("harmonizer.segmentation.predict.refine", lambda _, __, prior: prior)
    bright = noisy(ball((80, 80, 80), centered(np.eye(3), (80,) * 3)))
    dark = bright.with_data(np.where(bright.mask, 1300 - bright.data, 0))
    one, two = (segment(image, network=EitherWay()) for image in (bright, dark))
    np.testing.assert_array_equal(one.classes, two.classes)
    for tissue in one.tissues:
        np.testing.assert_allclose(one.tissues[tissue], two.tissues[tissue], atol=1e-4)


class Counting(ByBrightness):
    """Counts its forward passes."""

    passes = 0

    def features(self, image: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        return super().features(image)


def test_quick_runs_two_passes_instead_of_four_and_keeps_volumes() -> None:
    volume = noisy(ball((80, 80, 80), centered(np.eye(3), (80,) * 3)))
    networks = Counting(), Counting()
    full = segment(volume, network=networks[0])
    quick = segment(volume, network=networks[1], quick=True)
    assert [network.passes for network in networks] == [4, 2]
    for tissue, one in full.tissues.items():
        assert quick.tissues[tissue].sum() == pytest.approx(one.sum(), rel=0.01)
    assert NetworkSegmenter(quick=True).name != NetworkSegmenter().name


def test_without_refinement_the_networks_probabilities_are_returned() -> None:
    volume = noisy(ball((80, 80, 80), centered(np.eye(3), (80,) * 3)))
    alone = segment(volume, network=Slabs(), borders=False)
    for one in alone.tissues.values():
        slab = one.max(axis=(0, 2), keepdims=True)  # the same in every column
        np.testing.assert_allclose(one, np.where(volume.mask, slab, 0), atol=1e-5)
    transformed = segment(volume, network=Slabs())
    assert float(np.abs(transformed.tissues["WM"] - alone.tissues["WM"]).max()) > 0.1


def test_voxels_outside_the_mask_are_ignored() -> None:
    volume = noisy(ball((80, 80, 80), centered(np.eye(3), (80,) * 3)))
    bright = volume.with_data(np.where(volume.mask, volume.data, 5e4))
    one, two = segment(volume, network=ByBrightness()), segment(bright, network=ByBrightness())
    np.testing.assert_array_equal(one.classes, two.classes)
    np.testing.assert_array_equal(one.tissues["GM"], two.tissues["GM"])


def test_a_mirrored_image_gives_the_mirrored_answer() -> None:
    volume = noisy(ball((80, 80, 80), centered(np.eye(3), (80,) * 3)))
    turned = np.diag([-1.0, 1, 1, 1]) @ volume.affine @ _flip(80)
    mirror = Volume(volume.data[::-1], turned, volume.mask[::-1])
    one = segment(volume, network=ByBrightness())
    two = segment(mirror, network=ByBrightness())
    assert (one.classes == two.classes[::-1]).mean() > 0.98


@pytest.mark.parametrize("name", ["plain", "permuted", "tilted"])
def test_with_left_and_right_exchanged_the_answer_is_mirrored(name: str) -> None:
    axes, shape = GRIDS[name]
    volume = noisy(ball(shape, centered(axes, shape)))
    side = int(np.abs(axes[0]).argmax())  # the affine stays: a left brain on the right side
    mirror = Volume(np.flip(volume.data, side), volume.affine, np.flip(volume.mask, side))
    one, two = (segment(image, network=Lopsided()) for image in (volume, mirror))
    for tissue, probability in one.tissues.items():
        here, there = probability > 0.5, np.flip(two.tissues[tissue], side) > 0.5
        assert 2 * (here & there).sum() / (here.sum() + there.sum()) >= 0.999, tissue
    assert two.contrast_to_noise == pytest.approx(one.contrast_to_noise, rel=1e-3)


def test_high_contrast_gives_no_warning() -> None:
    found = segment(noisy(ball((80,) * 3, centered(np.eye(3), (80,) * 3))), network=ByBrightness())
    assert found.contrast_to_noise > NETWORK_PRIOR.contrast_to_noise_range[1]
    assert low_confidence_warning(found.contrast_to_noise) is None
    assert low_confidence_warning(MIN_CONTRAST_TO_NOISE) is None


def test_low_contrast_of_image_and_negative_gives_a_warning() -> None:
    volume = ball((80,) * 3, centered(np.eye(3), (80,) * 3))
    noise = np.random.default_rng(3).normal(500, 50, volume.shape)
    found = segment(volume.with_data(np.where(volume.mask, noise, 0)), network=KnowsBrightCores())
    assert 0 <= found.contrast_to_noise < 0.3
    warning = str(low_confidence_warning(found.contrast_to_noise))
    assert f"{found.contrast_to_noise:.2f}, less than {MIN_CONTRAST_TO_NOISE}" in warning


def _flip(count: int) -> np.ndarray:
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = count - 1
    return flip


@pytest.mark.parametrize("volume, word", [
    (Volume(np.full((20, 20, 20), 5.0), np.eye(4), np.ones((20, 20, 20))), "constant"),
    (Volume(np.ones((20, 20, 20)), np.eye(4)), "needs a brain mask"),
    (Volume(np.ones((20, 20, 20)), np.eye(4), np.zeros((20, 20, 20))), "mask is empty"),
])
def test_what_cannot_be_segmented_is_refused(volume: Volume, word: str) -> None:
    with pytest.raises(InputError, match=word):
        segment(volume, network=ByBrightness())
