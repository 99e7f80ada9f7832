"""Figures that need a fitted model: what each scanner did to each tissue."""

from __future__ import annotations

import logging

from harmonizer.backends import registry
from harmonizer.backends.target import Target
from harmonizer.errors import HarmonizerError
from harmonizer.reports.explained import explained_figure, tissue_difference
from harmonizer.reports.figures import Figure

from ..settings import Settings
from .targets import model_folder_of, resolve_target

__all__ = ["explained_figures"]

LOGGER = logging.getLogger("pipelines")
MOST = 12  # sites that are drawn, those with most scans


def explained_figures(settings: Settings, modality: str) -> tuple[Figure, ...]:
    """One a site other than the target; none for a method without tissue maps or without a model.
    """
    kind = registry.get(settings.backend)
    if not hasattr(kind, "statistics_of"):
        return ()
    try:
        folder = model_folder_of(settings, modality)
        if folder is None:
            return ()
        backend = kind.load(folder)
        aim = Target.load(resolve_target(settings, modality, folder).card)
    except HarmonizerError as error:
        LOGGER.warning("No maps of what each scanner did to each tissue: %s", error)
        return ()
    lattice, goal = backend.statistics_of(aim.style)
    sites = sorted(backend.sites_, key=lambda site: -backend.sites_[site])
    return tuple(
        explained_figure(site, aim.label, lattice, tissue_difference(
            backend.statistics_of(backend.target(site).style)[1], goal))
        for site in sites[:MOST] if (aim.kind, aim.label) != ("site", site))
