"""Reportlets on disk: ``sub-X/figures/<scan_id>_<stage>.json`` and one PNG for each frame.

Reports are assembled from these files without reading images. The index is written last: if it
exists, all figures exist.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harmonizer.files import atomic_path, read_json, write_json
from harmonizer.reports.figures import Figure

from .names import ScanPaths

__all__ = ["figures_index", "save_figures", "load_figures"]


def figures_index(paths: ScanPaths, stage: str) -> Path:
    """Return the path of the JSON index of a scan's figures of a stage."""
    return paths.figures / f"{paths.scan_id}_{stage}.json"


def save_figures(paths: ScanPaths, stage: str, figures: Sequence[Figure]) -> list[str]:
    """Write the figures of a scan's stage, then the index; return the titles."""
    index = []
    for number, figure in enumerate(figures):
        names = [f"{paths.scan_id}_{stage}_{number}{frame}.png"
                 for frame in "abcdefgh"[:len(figure.frames)]]
        for name, png in zip(names, figure.frames):
            with atomic_path(paths.figures / name) as temporary:
                temporary.write_bytes(png)
        index.append({"title": figure.title, "caption": figure.caption, "alt": figure.alt,
                      "frames": names, "labels": list(figure.labels)})
    write_json(figures_index(paths, stage), index)
    return [figure.title for figure in figures]


def load_figures(paths: ScanPaths, stage: str) -> tuple[Figure, ...]:
    """Read the figures of a scan's stage; empty if there are none."""
    path = figures_index(paths, stage)
    if not path.is_file():
        return ()
    return tuple(
        Figure(entry["title"], entry["caption"], entry["alt"],
               tuple((paths.figures / name).read_bytes() for name in entry["frames"]),
               tuple(entry["labels"]))
        for entry in read_json(path)
    )
