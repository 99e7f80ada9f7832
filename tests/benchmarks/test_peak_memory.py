"""The peak that benchmarks print is that of the process, not of the one that started it."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
ASKED = f"import sys; sys.path.insert(0, {str(FOLDER)!r}); from peak_memory import peak_gb; "


def peak_of(work: str) -> float:
    done = subprocess.run([sys.executable, "-c", f"{ASKED}{work}; print(peak_gb())"],
                          capture_output=True, text=True, check=True)
    return float(done.stdout)


def test_what_the_parent_holds_does_not_count() -> None:
    held = np.ones(50_000_000)  # 0.4 GB
    assert peak_of("pass") < 0.1
    assert held.all()


def test_what_was_held_and_given_back_counts() -> None:
    assert 0.2 < peak_of("held = bytes(range(256)) * 1_000_000; del held") < 0.4
