"""Run the app in a process of its own; tests check exit code, output and files."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
QUICK = "histogram_matching"


@dataclass(frozen=True)
class AppResult:
    """Exit code and output of a run."""

    code: int
    output: str


def command(*arguments: object) -> list[str]:
    """The command line of a run; by the quickest method that needs a fit where none is named."""
    words = [str(argument) for argument in arguments]
    if not {"--backend", "--config-file", "--help", "--version"} & set(words):
        words += ["--backend", QUICK]
    return [sys.executable, str(ROOT / "run.py"), *words]


def run_app(*arguments: object, timeout: float = 600) -> AppResult:
    """Run the app to its end."""
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=timeout,
                          cwd=ROOT)
    return AppResult(done.returncode, done.stdout + done.stderr)


def results(out: Path) -> dict[str, str]:
    """Everything that must be the same for the same input and seed: relative path -> SHA-256.

    Logs hold times, HTML holds times and is made of the rest; both are left out.
    """
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.relative_to(out).parts[0] != "logs" and path.suffix != ".html"
    }
