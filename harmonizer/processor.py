"""What the processor can do that changes how fast a training is."""

from __future__ import annotations

from pathlib import Path

__all__ = ["has_fast_bf16"]


def has_fast_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (elsewhere it is slower than float32)."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "amx_bf16" in text or "avx512_bf16" in text
