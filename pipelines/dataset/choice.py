"""Choice among several images of one session.

A session may hold the same anatomy several times: with and without contrast agent (`ce`), as
magnitude and without that entity (`part`), at several echo times (`echo`). Using all would count a
subject several times, at contrasts that other subjects do not have. In each session

* images without `ce` are preferred; if all have it, all are used, with a warning;
* an image without `part` is preferred to the same image with `part-mag`;
* images without `echo` are preferred; if all have it, the first echo of each is used.

Runs, acquisitions and reconstructions are all used. A filter file that names one of the three
entities overrides the rule for that entity.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from .records import Finding, entities_of

__all__ = ["choose_images"]

Image = tuple[str, Path]
MAX_LISTED = 5
REASONS = {"ce": "the session has an image without contrast agent",
         "part": "the session has the same image without this entity",
         "echo": "the session has an image without this entity, or an earlier echo"}
PYBIDS_NAMES = {"ce": "ceagent", "part": "part", "echo": "echo"}


def choose_images(
    images: Iterable[Image], filters: Mapping[str, Collection[str]], root: Path
) -> tuple[list[Image], list[Finding]]:
    """Choose the images of each session; return them in their order, and warnings.

    Parameters
    ----------
    images : iterable of (str, Path)
        Modality and path.
    filters : mapping of str to collection of str
        Lower-case modality -> entities of the filter file, with pybids' names.
    root : Path
        Root of the dataset, for the warnings.
    """
    images = list(images)
    sessions = defaultdict(list)
    for modality, path in images:
        entities = entities_of(path.name)
        sessions[modality, entities.get("sub"), entities.get("ses")].append((modality, path))
    chosen: set[Image] = set()
    left: dict[str, list[Path]] = defaultdict(list)
    only_enhanced: list[Path] = []
    for (modality, _, _), group in sessions.items():
        named = filters.get(modality.lower(), ())
        for entity, prefer in PREFERENCES.items():
            if PYBIDS_NAMES[entity] in named:
                continue
            preferred = prefer(group)
            left[entity] += [path for _, path in group if (modality, path) not in preferred]
            group = preferred
        if "ceagent" not in named:
            only_enhanced += [path for _, path in group if "ce" in entities_of(path.name)]
        chosen.update(group)
    return ([image for image in images if image in chosen],
            _warnings(left, only_enhanced, images, root))


def _without(entity: str, group: list[Image]) -> list[Image]:
    """Return the images without an entity; all images if each has it."""
    return [image for image in group if entity not in entities_of(image[1].name)] or group


def _no_agent(group: list[Image]) -> list[Image]:
    return _without("ce", group)


def _no_part(group: list[Image]) -> list[Image]:
    return [image for alike in _alike(group, "part") for image in _without("part", alike)]


def _first_echo(group: list[Image]) -> list[Image]:
    without = _without("echo", group)
    if "echo" not in entities_of(without[0][1].name):
        return without
    return [min(alike, key=_echo) for alike in _alike(group, "echo")]


def _echo(image: Image) -> tuple[int, str]:
    text = entities_of(image[1].name)["echo"].lstrip("0")
    return len(text), text  # numeric order, also of labels that are no numbers


def _alike(group: list[Image], entity: str) -> list[list[Image]]:
    """Group images whose names differ only in one entity."""
    groups = defaultdict(list)
    for image in group:
        others = {k: v for k, v in entities_of(image[1].name).items() if k != entity}
        groups[tuple(sorted(others.items()))].append(image)
    return list(groups.values())


PREFERENCES: dict[str, Callable[[list[Image]], list[Image]]] = {
    "ce": _no_agent, "part": _no_part, "echo": _first_echo,
}


def _warnings(
    left: Mapping[str, list[Path]], only_enhanced: list[Path], images: list[Image], root: Path
) -> list[Finding]:
    findings = [
        Finding(root, f"{len(paths)} images with the entity {entity!r} are not used, because "
                f"{REASONS[entity]}: {_some(paths)}",
                f"To use them as well give --bids-filter-file with {_query(entity, images)}.")
        for entity, paths in left.items() if paths]
    if only_enhanced:
        findings.append(Finding(
            root, f"{len(only_enhanced)} images with contrast agent are used, because their "
            f"sessions have no others: {_some(only_enhanced)}",
            'To leave them out give --bids-filter-file {"t1w": {"ceagent": null}}.'))
    return findings


def _query(entity: str, images: list[Image]) -> str:
    """Return a filter that selects all images, with and without the entity."""
    values: dict[str, set[str]] = defaultdict(set)
    for modality, path in images:
        if value := entities_of(path.name).get(entity):
            values[modality.lower()].add(value)
    numeric = entity == "echo" and all(map(str.isdecimal, set().union(*values.values())))
    return json.dumps({
        modality: {PYBIDS_NAMES[entity]: [None, *(sorted(map(int, labels)) if numeric
                                                  else sorted(labels))]}
        for modality, labels in values.items()})


def _some(paths: list[Path]) -> str:
    more = f" and {len(paths) - MAX_LISTED} more" if len(paths) > MAX_LISTED else ""
    return ", ".join(path.name for path in paths[:MAX_LISTED]) + more
