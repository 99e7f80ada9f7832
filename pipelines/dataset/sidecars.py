"""Sidecar fields of one image, merged by the BIDS inheritance principle.

A JSON file applies to an image if three conditions hold: it lies in a folder between the root and
the image, it has the same suffix, and all its entities occur in the name of the image. The deeper
file overrides (BIDS specification, Common principles, "The Inheritance Principle").

pybids can do this while indexing, but there one broken JSON file stops the whole index. Here it
excludes one scan.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harmonizer.files import read_json

from .records import entities_of, split_name

__all__ = ["applicable_sidecars", "applies_to", "merged_metadata"]


def merged_metadata(image: Path, root: Path) -> dict[str, Any]:
    """Merge the sidecar fields of an image in the dataset at `root`; empty without a sidecar.

    Raises
    ------
    harmonizer.errors.InputError
        If a sidecar that applies cannot be read; the message names it.
    """
    merged: dict[str, Any] = {}
    for path in applicable_sidecars(image, root):
        content = read_json(path)
        merged.update(content if isinstance(content, dict) else {})
    return merged


def applies_to(sidecar: Path, image: Path, root: Path) -> bool:
    """Return whether a JSON file of the dataset applies to an image, from their names."""
    suffix = split_name(image.name)[1]
    fits = sidecar.name == f"{suffix}.json" or sidecar.name.endswith(f"_{suffix}.json")
    return (fits and image.is_relative_to(sidecar.parent) and sidecar.is_relative_to(root)
            and entities_of(sidecar.name).items() <= entities_of(image.name).items())


def applicable_sidecars(image: Path, root: Path) -> Iterator[Path]:
    """Yield the JSON files that apply to an image, the most general first."""
    _, suffix, _ = split_name(image.name)
    for folder in _way_down(image.parent, root):
        names = folder.glob(f"*{suffix}.json")  # a pattern, which also finds broken links
        fitting = [path for path in names if applies_to(path, image, root)]
        yield from sorted(fitting, key=lambda p: (len(entities_of(p.name)), p.name))


def _way_down(folder: Path, root: Path) -> list[Path]:
    """Return the folders from `root` down to `folder`, both included."""
    steps = folder.relative_to(root).parts
    return [root.joinpath(*steps[:n]) for n in range(len(steps) + 1)]
