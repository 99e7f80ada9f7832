"""The batch of the patch diffusion paper trains in the memory of its GPU."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "activation_memory.py"
GPU_BYTES = 48e9  # of the paper


@pytest.fixture(scope="module")
def memory():
    spec = importlib.util.spec_from_file_location("benchmark_activation_memory", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_living_tensors_are_counted_until_they_are_freed(memory):
    with torch.device("meta"):
        x = torch.empty(1000)
    with memory.MemoryCounter() as counter:
        a = x + 1
        b = a.reshape(10, 100) * 2  # the view is no new memory
        assert counter.living == 8000
        del a
        assert counter.living == 4000
        c = b + b
        del b
    assert (counter.living, counter.peak) == (c.numel() * 4, 8000)


def test_the_batch_of_the_paper_fits_its_gpu_with_checkpointing_alone(memory):
    with_, without = (memory.step_bytes({"preset": "paper", "checkpointing": on})
                      for on in (True, False))
    assert with_ < 0.9 * GPU_BYTES < GPU_BYTES < without
