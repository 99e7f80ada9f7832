"""The most memory that this process has held."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["peak_gb"]


def peak_gb() -> float:
    """Resident memory at its peak, in GB of 10^9 bytes (Linux).

    Not `ru_maxrss` of getrusage: in a process that another one started, that is at least what the
    other held.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 / 1e9
