"""Processor capabilities, numerical precision and thread count of torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

__all__ = ["full_precision", "gpu_problem", "has_fast_bf16", "trains_in_bf16", "torch_threads"]

MIN_BF16_COMPUTE_CAPABILITY = (8, 0)  # NVIDIA Ampere


def has_fast_bf16() -> bool:
    """Return whether this CPU multiplies bfloat16 in hardware; elsewhere it is slower than fp32."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "amx_bf16" in text or "avx512_bf16" in text


def trains_in_bf16(device: str) -> bool:
    """Return whether bfloat16 is faster than float32 on a device.

    Parameters
    ----------
    device : str
        ``cpu``, ``cuda`` or ``cuda:N``.
    """
    if not device.startswith("cuda"):
        return has_fast_bf16()
    return torch.cuda.get_device_capability(device) >= MIN_BF16_COMPUTE_CAPABILITY


def gpu_problem(index: int = 0) -> str | None:
    """Return why this build of torch cannot compute on a GPU; None if it can.

    A kernel that was compiled for ``sm_86`` runs on devices of capability 8.6 and later ones of
    the same major version. An architecture ``compute_90`` is compiled by the driver for 9.0 and all
    later devices.

    Parameters
    ----------
    index : int
        Number of the CUDA device.
    """
    capability = torch.cuda.get_device_capability(index)
    architectures = torch.cuda.get_arch_list()
    for architecture in architectures:
        kind, _, digits = architecture.rstrip("af").partition("_")
        built_for = (int(digits[:-1]), int(digits[-1]))
        same_major = kind == "compute" or built_for[0] == capability[0]
        if same_major and built_for <= tuple(capability):
            return None
    major, minor = capability
    return (f"{torch.cuda.get_device_name(index)} has compute capability {major}.{minor}, and "
            f"torch {torch.__version__} (CUDA {torch.version.cuda}) is built for "
            f"{', '.join(architectures) or 'no GPU'}")


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Compute convolutions in full float32, without TensorFloat-32 on GPUs from Ampere on."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@contextlib.contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Set the number of CPU threads of torch within the block; None leaves it unchanged."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
