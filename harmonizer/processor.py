"""What the processor can do that changes how fast a network is, and how much of it torch uses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

__all__ = ["has_fast_bf16", "trains_in_bf16", "torch_threads"]


def has_fast_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (elsewhere it is slower than float32)."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "amx_bf16" in text or "avx512_bf16" in text


def trains_in_bf16(device: str) -> bool:
    """Whether bfloat16 is the quicker way on a device, ``cpu`` or ``cuda[:N]``."""
    return device.startswith("cuda") or has_fast_bf16()


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
