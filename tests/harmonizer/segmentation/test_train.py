"""The training loop: it learns, it resumes to the same bits, it refuses what does not fit."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from harmonizer.deep import processor
from harmonizer.deep.networks.blocks import pixel_unshuffle
from harmonizer.errors import InputError, UsageError
from harmonizer.files import sha256_of
from harmonizer.segmentation.__main__ import _settings, main
from harmonizer.segmentation.card import write_model
from harmonizer.segmentation.network import SegmenterNet
from harmonizer.segmentation.train import segmentation_loss, train, validate
from harmonizer.segmentation.train_settings import CURRICULUM, PLANS, PRESETS, Phase
from harmonizer.segmentation.weights_file import read_weights, write_weights
from tests.harmonizer.segmentation.heads import SMALL, ball_labels, ball_map

TEST = replace(PRESETS["test"], steps=6, phases=(Phase(1.0, SMALL),))


def test_the_network_is_small_and_names_its_multiple() -> None:
    network = SegmenterNet()
    assert sum(p.numel() for p in network.parameters()) < 4e6
    assert network.multiple == 16
    with pytest.raises(ValueError, match="multiples of 16"):
        network(torch.zeros(1, 1, 16, 16, 24))


def test_every_parameter_gets_a_gradient() -> None:
    network = SegmenterNet()
    for block in network.decoder:  # it starts at zero, which keeps the first gradient from the code
        torch.nn.init.normal_(block.modulation.weight)
    loss = segmentation_loss(network(torch.rand(1, 1, 16, 16, 16)),
                             torch.randint(0, 9, (1, 8, 8, 8, 8)))
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_the_loss_of_a_sure_and_right_answer_is_nothing() -> None:
    target = torch.randint(0, 3, (1, 4, 4, 4))
    right = torch.nn.functional.one_hot(target, 3).permute(0, 4, 1, 2, 3) * 50.0
    assert float(segmentation_loss(right, target)) == pytest.approx(0, abs=1e-4)
    assert float(segmentation_loss(-right, target)) > 1.5


def test_each_step_belongs_to_one_phase() -> None:
    settings = replace(PRESETS["test"], steps=100, phases=CURRICULUM)
    seen = [CURRICULUM.index(next(p for p in CURRICULUM if p.synthesis == settings.synthesis_at(n)))
            for n in range(100)]
    assert seen == sorted(seen)
    assert [seen.count(n) for n in range(4)] == [16, 24, 48, 12]


def test_training_learns(tmp_path) -> None:
    maps = [ball_map()]
    train(maps, tmp_path, replace(TEST, steps=30))
    with open(tmp_path / "history.tsv", encoding="utf-8") as stream:
        losses = [float(row["loss"]) for row in csv.DictReader(stream, delimiter="\t")]
    assert len(losses) == 30
    assert np.mean(losses[-8:]) < np.mean(losses[:4]) - 0.5


def test_training_begins_with_given_weights(tmp_path) -> None:
    first = train([ball_map()], tmp_path / "first", TEST)
    write_weights(tmp_path / "given.safetensors", first)
    idle = replace(TEST, steps=1, learning_rate=0.0)
    network = train([ball_map()], tmp_path / "idle", idle,
                    initial_weights=tmp_path / "given.safetensors")
    given = read_weights(tmp_path / "given.safetensors")
    for name, value in given.state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], value, rtol=0, atol=1e-6)
    write_model(tmp_path / "idle", network, {"cortex": 0.5}, "test", 0)
    assert "--initial-weights" in (tmp_path / "idle" / "segmenter.md").read_text(encoding="utf-8")


def test_initial_weights_must_fit_and_stay(tmp_path) -> None:
    other = tmp_path / "other.safetensors"
    write_weights(other, SegmenterNet(widths=(8, 8)))
    with pytest.raises(InputError, match="expected a network of"):
        train([ball_map()], tmp_path / "run", TEST, initial_weights=other)
    with pytest.raises(InputError, match="cannot be read"):
        train([ball_map()], tmp_path / "run", TEST, initial_weights=tmp_path / "none.safetensors")
    assert not (tmp_path / "run").exists()
    train([ball_map()], tmp_path / "run", TEST)
    fitting = tmp_path / "fitting.safetensors"
    write_weights(fitting, SegmenterNet(widths=TEST.widths))
    with pytest.raises(UsageError, match="initial weights"):
        train([ball_map()], tmp_path / "run", TEST, initial_weights=fitting)


def test_an_interrupted_training_resumes_to_the_same_bits(tmp_path, monkeypatch) -> None:
    maps = [ball_map()]
    whole = train(maps, tmp_path / "whole", TEST)
    stop_at(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        train(maps, tmp_path / "parts", TEST, save_every=2)
    monkeypatch.undo()
    parts = train(maps, tmp_path / "parts", TEST, save_every=2)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name


def stop_at(monkeypatch, step: int) -> None:
    """Interrupt the training when this step is to be noted."""
    from harmonizer.segmentation import train as module

    note = module._log_step

    def interrupted(out, state, loss, seconds) -> None:
        if state.step > step:
            raise KeyboardInterrupt
        note(out, state, loss, seconds)

    monkeypatch.setattr(module, "_log_step", interrupted)


def test_another_training_in_the_same_folder_is_refused(tmp_path) -> None:
    train([ball_map()], tmp_path, replace(TEST, steps=1))
    with pytest.raises(UsageError, match="another training"):
        train([ball_map()], tmp_path, replace(TEST, steps=2))


def test_maps_that_are_all_held_out_are_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="none is left"):
        train([ball_map()], tmp_path, replace(TEST, n_validation_maps=1))


def test_weights_survive_the_file_and_the_card_tells_their_story(tmp_path) -> None:
    network = train([ball_map()], tmp_path, replace(TEST, steps=1))
    dice = validate(network, [ball_map()], count=2, synthesis=SMALL)
    path = write_model(tmp_path, network, dice, "test", 0)
    loaded = read_weights(path)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=1e-3, atol=1e-4)
    card = (tmp_path / "segmenter.md").read_text(encoding="utf-8")
    assert "--preset test --seed 0" in card and "| cortex |" in card


def test_validation_of_a_perfect_network_would_be_one(monkeypatch) -> None:
    """The Dice that validation reports is that of the answer with the truth."""
    from harmonizer.segmentation import train as module

    image, target = module.synthesize([ball_map()], 9, 0, SMALL)
    truth = pixel_unshuffle(target[None, None], 2).long()
    answer = torch.nn.functional.one_hot(truth, 9).permute(0, 5, 1, 2, 3, 4)

    class Perfect(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = torch.nn.Parameter(torch.ones(1))

        def forward(self, _: torch.Tensor) -> torch.Tensor:
            return answer.float()

    dice = validate(Perfect(), [ball_map()], count=1, seed=9, synthesis=SMALL)
    assert all(value == pytest.approx(1.0) for value in dice.values())


@pytest.mark.parametrize("damage", ["missing", "text", "classes"])
def test_strange_weights_are_refused(tmp_path, damage: str) -> None:
    path = tmp_path / "segmenter.safetensors"
    if damage == "text":
        path.write_text("not weights", encoding="utf-8")
    if damage == "classes":
        write_weights(path, SegmenterNet(widths=(8, 8)), {"classes": '["a", "b"]'})
    with pytest.raises(InputError, match="expected the classes|cannot be read as weights"):
        read_weights(path)


def test_a_plan_trains_each_preset_on_what_the_one_before_made(tmp_path, monkeypatch, capsys
                                                               ) -> None:
    maps = tmp_path / "maps"
    maps.mkdir()
    nib.save(nib.Nifti1Image(ball_labels().astype(np.int16), np.eye(4)), maps / "ball.nii.gz")
    monkeypatch.setitem(PRESETS, "test", replace(TEST, steps=2))
    monkeypatch.setitem(PLANS, "cpu-1h", ("test", "test"))
    command = ["train", str(maps), str(tmp_path / "run"), "--preset", "cpu-1h",
               "--threads", "1", "--seed", "5"]
    assert main(command) == 0
    first, second = (tmp_path / "run" / f"{n}-test" / "segmenter.safetensors" for n in (1, 2))
    about = [json.loads((p.parent / "training.json").read_text("utf-8")) for p in (first, second)]
    assert [a["Training"]["seed"] for a in about] == [5, 6]
    assert [a.get("InitialWeightsSha256") for a in about] == [None, sha256_of(first)]
    assert capsys.readouterr().out.strip() == str(second)
    before = [p.stat().st_mtime_ns for p in (first, second)]
    assert main(command) == 0
    assert [p.stat().st_mtime_ns for p in (first, second)] == before
    assert main([*command[:-1], "6"]) == UsageError.exit_code
    assert "another training" in capsys.readouterr().err


@pytest.mark.parametrize("fast, precision", [(True, "bf16"), (False, "fp32")])
def test_a_processor_without_bfloat16_trains_in_single_precision_and_says_so(
        fast, precision, monkeypatch, caplog) -> None:
    monkeypatch.setattr(processor, "has_fast_bf16", lambda: fast)
    with caplog.at_level("WARNING", "harmonizer.segmentation"):
        assert _settings("later", 7, "cpu") == replace(PRESETS["later"], seed=7,
                                                       precision=precision)
    assert ("single precision" in caplog.text) is not fast
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8 if fast else 7, 5))
    assert _settings("later", 7, "cuda:0").precision == precision


def test_plans_name_presets_of_one_network() -> None:
    for presets in PLANS.values():
        assert len({PRESETS[name].widths for name in presets}) == 1
