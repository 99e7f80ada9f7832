"""The brain of a whole head by the network: what it is taught, how it is used, what it reaches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from harmonizer.deep.networks.blocks import pixel_unshuffle
from harmonizer.deep.processor import torch_threads
from harmonizer.errors import InputError
from harmonizer.phantom import image_of, make_subject, scanner_named
from harmonizer.preprocessing.brain import MIN_NETWORK_DICE, MIN_TEMPLATE_DICE
from harmonizer.segmentation.brain import brain_by_network, brain_weights_name, network_mask
from harmonizer.segmentation.card import write_model
from harmonizer.segmentation.segmentations import dice
from harmonizer.segmentation.synthesis import SynthesisSettings, synthesize
from harmonizer.segmentation.train import train, validate
from harmonizer.segmentation.train_settings import PRESETS, WHOLE_HEAD, Phase
from harmonizer.segmentation.weights_file import read_weights
from harmonizer.volume import Volume
from tests.harmonizer.segmentation.heads import ball_map

HEAD = replace(WHOLE_HEAD, crop=(32, 32, 32), voxel_mm=2.0, shift_mm=2.0, cut=0.0, defaced=0.0,
               warp_mm=((16.0, 0.5),), turned=0.5)
SHORT = replace(PRESETS["test"], steps=4, widths=(8, 8), phases=(Phase(1.0, HEAD),))


class Bright(torch.nn.Module):
    """Says brain where it is brighter than 0.5."""

    classes = 2
    multiple = 16

    def features(self, image: torch.Tensor) -> torch.Tensor:
        return pixel_unshuffle(image, 2)

    def head(self, features: torch.Tensor) -> torch.Tensor:
        return torch.cat([0.5 - features, features - 0.5], dim=1) * 40


def balls(shape: tuple[int, ...], affine: np.ndarray) -> Volume:
    """A ball of 30 mm with a hole around (4, -6, 3) mm, a smaller one beside it; the mask: filled.
    """
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    away = [np.linalg.norm(world - at, axis=-1) for at in ((4, -6, 3), (52, -6, 3))]
    data = np.where((away[0] < 30) | (away[1] < 10), 800.0, 20.0)
    data[away[0] < 7] = 20
    return Volume(data.astype(np.float32), affine, away[0] < 30)


def centered(axes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = axes
    affine[:3, 3] = -axes @ ((np.array(shape) - 1) / 2)
    return affine


def turned(degrees: float) -> np.ndarray:
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


@pytest.mark.parametrize("axes, shape", [
    (np.eye(3) * 2, (72, 56, 52)),
    (np.diag([-2.0, 2, -2]), (72, 56, 52)),
    (np.array([[0.0, 0, 2], [2, 0, 0], [0, 2, 0]]), (56, 52, 72)),
    (np.diag([1.0, 2.0, 5.0]), (144, 56, 21)),
    (turned(25) * 2, (80, 70, 52)),
], ids=["plain", "flipped", "permuted", "thick", "oblique"])
def test_the_largest_component_is_found_and_filled_on_every_grid(axes, shape) -> None:
    volume = balls(shape, centered(axes, shape))
    found = network_mask(volume, network=Bright())
    assert found.dtype == bool and found.shape == shape
    assert 0.95 < dice(found, volume.mask) <= 1


def test_nothing_bright_is_no_brain_and_a_constant_image_is_refused() -> None:
    class Blind(Bright):
        def head(self, features: torch.Tensor) -> torch.Tensor:
            return torch.cat([features * 0 + 1, features * 0], dim=1)

    volume = balls((40, 40, 40), centered(np.eye(3) * 2, (40,) * 3))
    assert not network_mask(volume, network=Blind()).any()
    with pytest.raises(InputError, match="the image is constant"):
        network_mask(volume.with_data(np.full(volume.shape, 7.0)))


def test_the_truth_is_the_brain_at_any_voxel_size_and_in_any_direction() -> None:
    maps = [ball_map()]
    plain = SynthesisSettings(brain=True, warp_mm=(), scale=0, shear=0, atrophy=0, stripped=0,
                              defaced=0, cut=0, shift_mm=0)
    volume_l = []
    for mm, count, turn in ((1, 64, 0.0), (2, 32, 0.0), (2, 32, 1.0), (3, 32, 0.0)):
        how = replace(plain, crop=(count,) * 3, voxel_mm=float(mm), turned=turn)
        image, target = synthesize(maps, 3, 0, how)
        assert image.shape == target.shape == (count,) * 3
        assert set(torch.unique(target).tolist()) == {0, 1}
        volume_l.append(float(target.sum()) * mm**3 / 1e6)
    expected = 4 / 3 * np.pi * 20**3 / 1e6  # the ball's CSF and what lies in it
    assert volume_l == pytest.approx([expected] * 4, rel=0.08)


def test_turned_axes_are_another_image_and_unturned_ones_the_same() -> None:
    maps = [ball_map()]
    images = [synthesize(maps, 0, 1, replace(HEAD, turned=p))[0] for p in (0.0, 0.0, 1.0)]
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


def test_training_for_the_brain_resumes_and_tells_its_story(tmp_path) -> None:
    maps = [ball_map()]
    train(maps, tmp_path, SHORT)
    network = train(maps, tmp_path, SHORT)  # nothing is left to do
    found = validate(network, maps, count=1, synthesis=HEAD)
    assert network.classes == 2 and set(found) == {"outside", "brain"}
    assert len((tmp_path / "history.tsv").read_text(encoding="utf-8").splitlines()) == 1 + 4
    path = write_model(tmp_path, network, found, "brain", 5)
    card = path.with_suffix(".md").read_text(encoding="utf-8")
    assert path.name == "brain.safetensors" and "--preset brain --seed 5" in card
    assert read_weights(path).config == network.config


@pytest.fixture(scope="module")
def head() -> Volume:
    """A whole head of 3 mm voxels with its true mask."""
    scanner = replace(scanner_named("aspen"), voxel_mm=(3.0, 3.0, 3.0))
    return image_of(make_subject(11, spacing=4.0), scanner)[0]


def test_the_shipped_network_finds_the_brain_of_a_phantom(head) -> None:
    found = network_mask(head)
    assert 0.88 < dice(found, head.mask) < 0.99
    for axis in range(3):  # a mask that lies 15 mm elsewhere differs from a correct one
        assert 0.3 < dice(found, np.roll(head.mask, 5, axis)) < MIN_NETWORK_DICE


def test_the_network_s_mask_comes_with_a_registration(head) -> None:
    found = brain_by_network(head, head, sloppy=True)
    assert found.method == "network" and not found.brain_only
    assert np.array_equal(found.mask, network_mask(head))
    assert found.quality.overlap > MIN_TEMPLATE_DICE  # with the template's brain, by the affine


def test_brain_only_input_does_not_use_the_network(head) -> None:
    only = head.with_data(np.where(head.mask, head.data, 0))
    found = brain_by_network(only, only, sloppy=True)
    assert found.method == "foreground" and found.brain_only


def test_a_head_without_brain_for_the_network_is_refused(head, monkeypatch) -> None:
    monkeypatch.setattr("harmonizer.segmentation.brain.network_mask",
                        lambda volume: np.zeros(volume.shape, bool))
    with pytest.raises(InputError, match="found no brain.*--skull-strip auto"):
        brain_by_network(head, head, sloppy=True)


def test_the_answer_does_not_depend_on_threads(head) -> None:
    with torch_threads(2):
        one = network_mask(head)
        assert torch.get_num_threads() == 2
    with torch_threads(1):
        two = network_mask(head)
    np.testing.assert_array_equal(one, two)


def test_weights_have_a_name() -> None:
    assert brain_weights_name().startswith("brain-") and len(brain_weights_name()) == 18
