"""What every test stands on: one thread per library, no window, no network.

The environment is set before numpy, torch or ITK is imported, because each reads it only once.
"""
from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterator

import pytest

ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS",
              "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")

for _name in ONE_THREAD:
    os.environ.setdefault(_name, "1")
os.environ["MPLBACKEND"] = "Agg"
os.environ["NO_ET"] = os.environ["NIPYPE_NO_ET"] = "1"  # nipype and pybids send no telemetry


def _is_local(address: object) -> bool:
    """Whether a socket address stays on this machine: a Unix socket's path, or a loopback host."""
    if not isinstance(address, tuple):
        return True
    host = str(address[0])
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in ("", "localhost")


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Nothing is fetched at run time: reaching for another machine fails the test that does."""
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: object) -> None:
        if not _is_local(address):
            raise OSError(f"a test tried to reach {address!r}; the app must work without a network")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        yield


def _cuda_is_available() -> bool:
    import torch

    return torch.cuda.is_available()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip `gpu` tests without a CUDA device; torch is imported only if such a test exists."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not _cuda_is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
