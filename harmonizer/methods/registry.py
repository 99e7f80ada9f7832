"""Registry of backends: built-ins as a table of strings, plug-ins by entry point.

A plug-in is any installed package with an entry point in the group ``harmonizer.backends``. It
cannot replace a built-in; one that cannot be imported is reported and skipped. A backend is
imported when it is requested, not before.
"""

from __future__ import annotations

import importlib
import logging
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from ..errors import UnavailableError, UsageError, did_you_mean

if TYPE_CHECKING:
    from .base import Backend

__all__ = ["GROUP", "BUILT_IN", "names", "get", "available"]

GROUP = "harmonizer.backends"

BUILT_IN = {
    "cacd": "harmonizer.methods.learned.cacd.backend:Cacd",
    "disarm": "harmonizer.methods.learned.disarm.backend:Disarm",
    "histogram_matching": "harmonizer.methods.statistical.histogram_matching:HistogramMatching",
    "ihf": "harmonizer.methods.learned.ihf.backend:Ihf",
    "moment_matching": "harmonizer.methods.statistical.moment_matching:MomentMatching",
    "patch_diffusion": "harmonizer.methods.learned.patch_diffusion.backend:PatchDiffusion",
    "spectrum_swap": "harmonizer.methods.statistical.spectrum_swap:SpectrumSwap",
    "tissue_matching": "harmonizer.methods.statistical.tissue_matching:TissueMatching",
}

LOGGER = logging.getLogger("harmonizer")


@lru_cache(maxsize=1)
def _plugins() -> dict[str, EntryPoint]:
    """Return the entry points by name; those with the name of a built-in are skipped."""
    plugins: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        if point.name in BUILT_IN:
            LOGGER.warning("backend %r of %s is ignored: a plug-in cannot replace a built-in of "
                           "that name. Rename the entry point.", point.name, point.value)
        elif point.name in plugins:
            LOGGER.warning("backend %r is offered twice (%s, %s); the first is used.",
                           point.name, plugins[point.name].value, point.value)
        else:
            plugins[point.name] = point
    return plugins


def names() -> tuple[str, ...]:
    """Return the names of all backends, sorted; imports none of them."""
    return tuple(sorted({*BUILT_IN, *_plugins()}))


def get(name: str) -> type[Backend]:
    """Import a backend class by name.

    Raises
    ------
    UsageError
        If no backend has that name; the message lists the known ones.
    UnavailableError
        If a plug-in of that name is installed but cannot be imported.
    """
    if name in BUILT_IN:
        module, attribute = BUILT_IN[name].split(":")
        return getattr(importlib.import_module(module), attribute)
    if name not in _plugins():
        raise UsageError(f"there is no backend {name!r}. {did_you_mean(name, names())}")
    return _load_plugin(_plugins()[name])


def _load_plugin(point: EntryPoint) -> type[Backend]:
    from .base import Backend

    try:
        backend = point.load()
    except Exception as error:
        raise UnavailableError(
            f"backend {point.name!r} ({point.value}) is installed but cannot be imported: "
            f"{type(error).__name__}: {error}. Repair or uninstall that package."
        ) from error
    if not (isinstance(backend, type) and issubclass(backend, Backend)):
        raise UnavailableError(
            f"backend {point.name!r} ({point.value}) is not a subclass of "
            "harmonizer.methods.base.Backend. See docs/extend/backend.md."
        )
    return backend


def available() -> dict[str, type[Backend]]:
    """Import every backend, by name; a broken plug-in is logged and skipped."""
    found = {}
    for name in names():
        try:
            found[name] = get(name)
        except UnavailableError as error:
            LOGGER.warning("%s", error)
    return found
