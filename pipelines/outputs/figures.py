"""Reportlets on disk: ``sub-X/figures/<scan_id>_<stage>.json`` and one PNG for each frame.

``<scan_id>_<stage>_slices.json`` lists the slices of the viewer, WebP images. Reports are assembled
from these files without reading images. The index is written last: if it exists, all files exist.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from harmonizer.files import atomic_path, read_json, write_json
from harmonizer.reports.figures import Figure
from harmonizer.reports.slices import ScanSlices, SliceStack

from .names import ScanPaths

__all__ = ["figures_index", "save_figures", "load_figures", "save_slices", "load_slices"]


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


def save_slices(paths: ScanPaths, stage: str, slices: ScanSlices) -> None:
    """Write the slices of a scan's stage, then their index."""
    stacks = []
    for stack in slices.stacks:
        names = {name: f"{paths.scan_id}_{stage}_slices-{stack.plane}-{name}.webp"
                 for name in stack.images}
        for name, data in stack.images.items():
            with atomic_path(paths.figures / names[name]) as temporary:
                temporary.write_bytes(data)
        stacks.append({"plane": stack.plane, "positions": list(stack.positions),
                       "width": stack.width, "height": stack.height, "images": names})
    write_json(_slices_index(paths, stage), {
        "stacks": stacks, "windows": {name: list(ends) for name, ends in slices.windows.items()}})


def load_slices(paths: ScanPaths, stage: str, planes: Collection[str] = ()) -> ScanSlices | None:
    """Read the slices of a scan's stage, of some planes only or all; None if there are none."""
    path = _slices_index(paths, stage)
    if not path.is_file():
        return None
    content = read_json(path)
    stacks = tuple(
        SliceStack(entry["plane"], tuple(entry["positions"]), entry["width"], entry["height"],
                   {name: (paths.figures / file).read_bytes()
                    for name, file in entry["images"].items()})
        for entry in content["stacks"] if not planes or entry["plane"] in planes)
    return ScanSlices(stacks, {name: (low, high)
                               for name, (low, high) in content["windows"].items()})


def _slices_index(paths: ScanPaths, stage: str) -> Path:
    return paths.figures / f"{paths.scan_id}_{stage}_slices.json"
