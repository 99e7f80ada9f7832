"""Simulated device, to test without a GPU what must run on one.

Its tensors report another device and are computed on the CPU. An operation that mixes them with CPU
tensors fails as on CUDA. The device has torch's name "meta", which has no kernels of its own.
"""


from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = "meta"
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}  # CPU indices are taken
MAY_MIX = {"copy_", "_to_copy", *INDEXING}


class _There(torch.Tensor):
    """A tensor on the pretended device; `here` holds its numbers."""

    here: torch.Tensor

    @staticmethod
    def __new__(cls, here: torch.Tensor) -> _There:
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, here.size(), strides=here.stride(), storage_offset=here.storage_offset(),
            dtype=here.dtype, layout=here.layout, device=DEVICE)
        made.here = here
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[override]
        return _computed(func, args, kwargs or {})

    __torch_function__ = torch._C._disabled_torch_function_impl


class _Pretend(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _computed(func, args, kwargs or {})


def _computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What an operation gives, on the device where CUDA would have it, or the error of a mixture.
    """
    name = func._schema.name.split("::")[1]
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    there = {id(x.here): x for x in tensors if isinstance(x, _There)}
    foreign = [x for x in tensors if not isinstance(x, _There) and x.dim()]
    if there and (foreign and name not in MAY_MIX
                  or name in INDEXING and not isinstance(args[0], _There)):
        raise RuntimeError(f"{name}: expected all tensors to be on the same device")
    here_args, here_kwargs = tree_map(lambda x: x.here if isinstance(x, _There) else x,
                                      (args, kwargs))
    made_there = bool(there)
    if kwargs.get("device") is not None:
        made_there = torch.device(kwargs["device"]).type == DEVICE
        here_kwargs["device"] = "cpu"
    if here_kwargs.get("pin_memory"):
        here_kwargs["pin_memory"] = False
    result = func(*here_args, **here_kwargs)
    if name == "copy_":
        return args[0]
    return tree_map(lambda x: x if not isinstance(x, torch.Tensor) else
                    there.get(id(x)) if id(x) in there else _There(x) if made_there else x, result)


@contextlib.contextmanager
def pretended_device() -> Iterator[str]:
    """The device's name, while it exists."""
    autocast, tensor = torch.autocast, torch.tensor

    def made(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        return tensor(data, *args, **kwargs).to(device or "cpu")

    def made_like(like: torch.Tensor, data: Any) -> torch.Tensor:
        return made(data, dtype=like.dtype, device=like.device)

    with pytest.MonkeyPatch.context() as patch, _Pretend():
        patch.setattr(torch, "autocast", lambda device, *args, **kwargs: autocast(
            "cpu" if device == DEVICE else device, *args, **kwargs))
        patch.setattr(torch, "tensor", made)  # both make numbers without an operation
        patch.setattr(torch.Tensor, "new_tensor", made_like)
        yield DEVICE
