"""Steps that outlive the process: what is checkpoint, and what is not believed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harmonizer.deep.diffusion.sampler_checkpoint import SamplerCheckpoint

STEPS = [(3, 2), (2, 1), (1, 0)]


def advance(x: torch.Tensor, t: int, to: int) -> torch.Tensor:
    """Something that depends on x and on the step."""
    return 2 * x + t


@pytest.fixture
def begun(tmp_path):
    """A folder in which one run is finished and a second one ended after a step."""
    checkpoint = SamplerCheckpoint(tmp_path)
    checkpoint.run(torch.ones(2, 2), STEPS, advance)
    checkpoint.run(torch.zeros(2, 2), STEPS[:1], advance)
    return tmp_path


def test_each_run_goes_on_by_itself_and_one_file_of_it_stays(begun):
    names = sorted(path.name for path in begun.iterdir())
    assert [name[:8] + name[17:] for name in names] == [
        "run-0000_step-0003.npy", "run-0001_step-0001.npy"]
    made = []
    checkpoint = SamplerCheckpoint(begun)

    def counted(x, t, to):
        made.append((t, to))
        return advance(x, t, to)

    assert float(checkpoint.run(torch.ones(2, 2), STEPS, counted)[0, 0]) == 8 + 4 * 3 + 2 * 2 + 1
    assert float(checkpoint.run(torch.zeros(2, 2), STEPS, counted)[0, 0]) == 4 * 3 + 2 * 2 + 1
    assert made == STEPS[1:]


@pytest.mark.parametrize("content", [b"", b"half a fi", None], ids=["empty", "cut", "other shape"])
def test_what_cannot_be_this_run_is_made_again(begun, content):
    (path,) = begun.glob("run-0000-*")
    if content is None:
        np.save(path, np.zeros((3, 2), np.float32))
    else:
        path.write_bytes(content)
    assert float(SamplerCheckpoint(begun).run(torch.zeros(2, 2), STEPS, advance)[0, 0]) == 17, (
        "another x"
    )
    again = SamplerCheckpoint(begun).run(torch.ones(2, 2), STEPS, advance)
    assert float(again[0, 0]) == 8 + 4 * 3 + 2 * 2 + 1
