"""What the processor can do that changes how fast a network is, and how much of it torch uses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

__all__ = ["full_precision", "has_fast_bf16", "trains_in_bf16", "torch_threads"]

MULTIPLIES_BF16 = (8, 0)  # compute capability of NVIDIA's first GPUs that do (Ampere)


def has_fast_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (elsewhere it is slower than float32)."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "amx_bf16" in text or "avx512_bf16" in text


def trains_in_bf16(device: str) -> bool:
    """Whether bfloat16 is the quicker way on a device, ``cpu`` or ``cuda[:N]``."""
    if not device.startswith("cuda"):
        return has_fast_bf16()
    import torch

    return torch.cuda.get_device_capability(device) >= MULTIPLIES_BF16


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """float32 inside, also where torch would let a GPU round factors of convolutions to 10 bits.

    That is TensorFloat-32, on by default on Ampere and later.
    """
    import torch

    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@contextlib.contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """So many threads for torch inside (None: as it is), as many as before after it."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
