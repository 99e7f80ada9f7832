"""The loop: resumed is uninterrupted, optimizer groups do not touch each other."""

from __future__ import annotations

import json
import logging
import os
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from harmonizer.deep.training.checkpoint import read_checkpoint
from harmonizer.deep.training.loop import CHECKPOINT, step_seed, train
from harmonizer.deep.training.settings import Resources, TrainingSchedule
from harmonizer.deep.training.task import OptimizerGroup, TrainingTask
from harmonizer.errors import InternalError, UnavailableError, UsageError


class Duel(TrainingTask):
    """A generator and a critic of one linear layer each; noise in the loss, dropout in the net."""

    def __init__(self, poison: int | None = None, errors: list[float] | None = None) -> None:
        torch.manual_seed(5)
        self.networks = {
            "generator": torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Dropout(0.5)),
            "critic": torch.nn.Linear(3, 1)}
        self.identity = {"task": "duel"}
        self.poison, self.errors = poison, errors

    def optimizer_groups(self):
        return (OptimizerGroup("critic", ("critic",), self.critic, 1e-2),
                OptimizerGroup("generator", ("generator",), self.generator, 1e-2, every=2,
                               offset=1))

    def batch(self, step, rank):
        return {"x": torch.full((4, 3), float(step + 10 * rank)).cos(), "step": step}

    def critic(self, batch):
        real = self.networks["critic"](batch["x"])
        fake = self.networks["critic"](self.networks["generator"](torch.randn(4, 3)))
        return {"real": -real.mean(), "fake": fake.square().mean()}

    def generator(self, batch):
        loss = -self.networks["critic"](self.networks["generator"](batch["x"])).mean()
        return {"fool": loss * (float("nan") if batch["step"] == self.poison else 1.0)}

    def validate(self):
        return {} if self.errors is None else {"error": self.errors.pop(0), "baseline_error": 1.0}


FP32 = Resources(precision="fp32")


def test_resumed_is_uninterrupted(tmp_path):
    whole = train(Duel(), TrainingSchedule(9, log_every=2, save_every=4), FP32, tmp_path / "a", 1)
    train(Duel(), TrainingSchedule(5, log_every=2, save_every=4), FP32, tmp_path / "b", 1)
    torch.manual_seed(99)  # a new process
    rest = train(Duel(), TrainingSchedule(9, log_every=2, save_every=4), FP32, tmp_path / "b", 1)
    assert rest.steps == whole.steps == 9 and rest.stop_reason == "steps"
    for name, weight in whole.weights.items():
        torch.testing.assert_close(rest.weights[name], weight, rtol=0, atol=0)
    a, b = (read_checkpoint(tmp_path / run / CHECKPOINT)[0] for run in "ab")
    assert all(torch.equal(a[k], b[k]) for k in a) and set(a) == set(b)
    assert any(k.startswith("opt.generator.") for k in a)


def test_each_group_changes_its_own_networks_at_its_own_turn(tmp_path):
    before = Duel().networks["generator"][0].weight.detach().clone()
    task = Duel()
    train(task, TrainingSchedule(1), FP32, tmp_path, 1)  # step 0: the critic's alone
    torch.testing.assert_close(task.networks["generator"][0].weight, before, rtol=0, atol=0)
    critic = task.networks["critic"].weight.detach().clone()
    assert not torch.equal(critic, Duel().networks["critic"].weight)
    task = Duel()
    train(task, TrainingSchedule(2), FP32, tmp_path / "two", 1)
    assert not torch.equal(task.networks["generator"][0].weight, before)


def test_average_is_the_warmed_up_ema(tmp_path):
    weights = []

    class Watched(Duel):
        def batch(self, step, rank):
            weights.append(self.networks["critic"].weight.detach().clone())
            return super().batch(step, rank)

    task = Watched()
    outcome = train(task, TrainingSchedule(3, ema=0.2), FP32, tmp_path, 1)
    weights.append(task.networks["critic"].weight.detach())
    average = weights[0]
    for step, weight in enumerate(weights[1:], 1):
        decay = min(0.2, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight
    torch.testing.assert_close(outcome.weights["critic.weight"], average)


def test_a_term_that_is_not_finite_is_named_and_the_checkpoint_is_sound(tmp_path):
    with pytest.raises(InternalError, match="generator/fool became nan at step 3"):
        train(Duel(poison=3), TrainingSchedule(9, save_every=2), FP32, tmp_path, 1)
    _, facts = read_checkpoint(tmp_path / CHECKPOINT)
    assert facts["step"] == 2


def test_patience_keeps_the_best_average(tmp_path):
    errors = [0.5, 0.3, 0.4, 0.35, 0.1]
    schedule = TrainingSchedule(50, validate_every=2, patience=2, log_every=1)
    outcome = train(Duel(errors=errors), schedule, FP32, tmp_path, 1)
    assert (outcome.stop_reason, outcome.steps, outcome.best_step) == ("patience", 8, 4)
    assert outcome.metrics == {"error": 0.3, "baseline_error": 1.0}
    best = train(Duel(), TrainingSchedule(4), FP32, tmp_path / "plain", 1)
    torch.testing.assert_close(outcome.weights["critic.weight"], best.weights["critic.weight"])
    rows = (tmp_path / "history.tsv").read_text().splitlines()
    assert rows[0].split("\t")[:2] == ["step", "minutes"] and len(rows) == 9
    assert {"critic/real", "generator/fool", "error", "baseline_error"} <= set(rows[0].split("\t"))


def test_time_ends_it_with_a_checkpoint(tmp_path):
    outcome = train(Duel(), TrainingSchedule(10 ** 9), Resources(max_minutes=0.002), tmp_path, 1)
    assert outcome.stop_reason == "time" and 0 < outcome.steps < 10 ** 6
    assert read_checkpoint(tmp_path / CHECKPOINT)[1]["step"] == outcome.steps


def test_sigterm_saves_and_stops(tmp_path):
    import os
    import signal

    class Preempted(Duel):
        def batch(self, step, rank):
            if step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().batch(step, rank)

    before = signal.getsignal(signal.SIGTERM)
    outcome = train(Preempted(), TrainingSchedule(100), FP32, tmp_path, 1)
    assert (outcome.stop_reason, outcome.steps) == ("signal", 4)
    assert signal.getsignal(signal.SIGTERM) is before


def test_checkpoints_of_others_and_broken_ones_are_refused(tmp_path):
    train(Duel(), TrainingSchedule(2), FP32, tmp_path, 1)
    other = Duel()
    other.identity = {"task": "chess"}
    with pytest.raises(UsageError, match="is of another training"):
        train(other, TrainingSchedule(4), FP32, tmp_path, 1)
    (tmp_path / CHECKPOINT).write_bytes(b"no checkpoint")
    with pytest.raises(UnavailableError, match="expected a training checkpoint"):
        train(Duel(), TrainingSchedule(4), FP32, tmp_path, 1)


def test_torchs_generator_is_left_as_it_was(tmp_path):
    task = Duel()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    train(task, TrainingSchedule(2), FP32, tmp_path, 1)
    assert torch.equal(torch.rand(1), expected)


def test_step_seeds_differ_and_are_known():
    seeds = {step_seed(a, b, c) for a in range(3) for b in range(20) for c in range(3)}
    assert len(seeds) == 180 and min(seeds) >= 0 and max(seeds) < 2 ** 63
    assert step_seed(1, 2) == step_seed(1, 2, 0)


def test_progress_and_bf16(tmp_path):
    seen = []
    outcome = train(Duel(), TrainingSchedule(3), Resources(precision="bf16"), tmp_path, 1,
                    progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert outcome.weights["critic.weight"].dtype == torch.float32
    facts = read_checkpoint(tmp_path / CHECKPOINT)[1]
    assert json.dumps(facts["history"]) == json.dumps(outcome.history)


@pytest.mark.slow
def test_two_processes_end_with_the_same_weights():
    """DDP over gloo: in a fresh interpreter, since the processes are spawned."""
    import subprocess
    import sys
    from pathlib import Path

    script = Path(__file__).with_name("two_processes.py")
    answer = subprocess.run([sys.executable, str(script)], capture_output=True, text=True,
                            timeout=600, cwd=Path(__file__).parents[4])
    assert answer.returncode == 0, answer.stderr[-3000:]
    assert "same weights: True, data of both: True" in answer.stdout
    assert "ended by signal" in answer.stdout
    assert "train: 4 of 4 steps" in answer.stderr
    assert "2 x cpu, 4 steps, finite: True" in answer.stdout
    assert "found by one that was started" in answer.stdout


class Prepared(Duel):
    """A task whose batches may be prepared in other processes, and say where they were."""

    supports_workers = True

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.processes = set()

    def batch(self, step, rank):
        values = np.random.default_rng([step, rank]).standard_normal((4, 3)).astype(np.float32)
        return {"x": torch.from_numpy(values), "step": step, "process": os.getpid()}

    def critic(self, batch):
        self.processes.add(batch["process"])
        return super().critic(batch)


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_prepare_the_same_batches(tmp_path, workers):
    tasks = [Prepared(), Prepared()]
    alone, together = (
        train(task, TrainingSchedule(7, save_every=4), replace(FP32, workers=count),
              tmp_path / str(count), 1) for task, count in zip(tasks, (0, workers)))
    assert tasks[0].processes == {os.getpid()}
    assert os.getpid() not in tasks[1].processes and len(tasks[1].processes) == workers
    for name, weight in alone.weights.items():
        assert torch.equal(together.weights[name], weight)


def test_tasks_that_need_their_process_are_left_in_it(tmp_path):
    task = Prepared()
    task.supports_workers = False
    train(task, TrainingSchedule(2), replace(FP32, workers=2), tmp_path, 1)
    assert task.processes == {os.getpid()}


def test_an_error_in_a_worker_ends_the_training(tmp_path):
    class Broken(Prepared):
        def batch(self, step, rank):
            if step == 2:
                raise UsageError("no such scan.")
            return super().batch(step, rank)

    with pytest.raises(UsageError, match="no such scan"):
        train(Broken(), TrainingSchedule(5), replace(FP32, workers=2), tmp_path, 1)


def test_the_fraction_of_waiting_is_logged(tmp_path, caplog):
    class Slow(Duel):
        def batch(self, step, rank):
            time.sleep(0.05)
            return super().batch(step, rank)

    with caplog.at_level(logging.INFO, logger="harmonizer"):
        outcome = train(Slow(), TrainingSchedule(4), FP32, tmp_path, 1)
    assert 0.3 < outcome.waiting_fraction <= 1
    assert "of the time of the steps was spent waiting for data" in caplog.text
    resumed = train(Slow(), TrainingSchedule(4), FP32, tmp_path, 1)  # makes no step
    assert resumed.waiting_fraction == pytest.approx(outcome.waiting_fraction)
