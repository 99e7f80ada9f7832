"""Figures that need a fitted model: what each scanner did to each tissue."""

from __future__ import annotations

import logging

from harmonizer.errors import HarmonizerError
from harmonizer.files import read_json, sha256_of
from harmonizer.methods import registry
from harmonizer.methods.model_folder import model_hash
from harmonizer.methods.target import Target
from harmonizer.reports.figures import Figure
from harmonizer.reports.site_effect_maps import explained_figure, tissue_difference

from ..outputs.collect import Preprocessed
from ..outputs.names import sidecar
from ..settings import Settings
from .targets import card_path, model_folder_of

__all__ = ["explained_figures"]

LOGGER = logging.getLogger("pipelines")
MOST = 12  # sites that are drawn, those with most scans


def explained_figures(settings: Settings, model: str, item: Preprocessed) -> tuple[Figure, ...]:
    """One a site other than the target; none for a method without tissue maps.

    Parameters
    ----------
    settings : with the method and the desc of the images that are judged
    model : hash of the model that made them; no other model's maps are drawn beside them
    item : one of the scans; the sidecar of its harmonized image names the target's card
    """
    kind = registry.get(settings.backend)
    if not kind.capabilities.tissue_statistics:
        return ()
    modality = item.scan.modality
    made = read_json(sidecar(item.paths.image(settings.desc, template=True)))
    card = card_path(settings, modality, made["TargetKind"], made["Target"])
    try:
        folder = model_folder_of(settings, modality)
        if folder is None or model_hash(folder) != model:
            LOGGER.warning("No maps of what each scanner did to each tissue: the model that made "
                           "the images is not there. Give it with --model, or harmonize again.")
            return ()
        if not card.is_file() or sha256_of(card) != made["TargetSHA256"]:
            LOGGER.warning("No maps of what each scanner did to each tissue: %s is not the card "
                           "that the images were made by. Harmonize again.", card)
            return ()
        fitted, aim = kind.load(folder), Target.load(card)
        lattice, target_means = fitted.statistics_of(aim.style)
    except HarmonizerError as error:
        LOGGER.warning("No maps of what each scanner did to each tissue: %s", error)
        return ()
    sites = sorted(fitted.sites_, key=lambda site: -fitted.sites_[site])
    return tuple(
        explained_figure(site, aim.label, lattice, tissue_difference(
            fitted.statistics_of(fitted.target(site).style)[1], target_means))
        for site in sites[:MOST] if (aim.kind, aim.label) != ("site", site))
