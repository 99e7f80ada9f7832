"""Figures of site effects on each tissue, which need a fitted model."""

from __future__ import annotations

import logging

from harmonizer.errors import HarmonizerError
from harmonizer.files import read_json, sha256_of
from harmonizer.methods import registry
from harmonizer.methods.model_folder import model_hash
from harmonizer.methods.target import Target
from harmonizer.reports.figures import Figure
from harmonizer.reports.site_effect_maps import site_effect_figure, tissue_difference

from ..outputs.collect import Preprocessed
from ..outputs.names import sidecar
from ..settings import Settings
from .targets import card_path, model_folder_of

__all__ = ["site_effect_figures"]

LOGGER = logging.getLogger("pipelines")
MAX_DRAWN_SITES = 12  # those with the most scans


def site_effect_figures(settings: Settings, model: str, item: Preprocessed) -> tuple[Figure, ...]:
    """Draw one figure for each site other than the target; none without tissue statistics.

    Parameters
    ----------
    settings : Settings
        Method and desc of the images that are evaluated.
    model : str
        Hash of the model that made them; maps of other models are not drawn.
    item : Preprocessed
        One of the scans; the sidecar of its harmonized image names the site card of the target.
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
            LOGGER.warning("Site effect maps are not drawn: the model that made the images was not "
                           "found. Give it with --model, or harmonize again.")
            return ()
        if not card.is_file() or sha256_of(card) != made["TargetSHA256"]:
            LOGGER.warning(
    "Site effect maps are not drawn: %s is not the site card that the images "
    "were made with. Harmonize again.", card)
            return ()
        fitted, target = kind.load(folder), Target.load(card)
        lattice, target_means = fitted.statistics_of(target.style)
    except HarmonizerError as error:
        LOGGER.warning("Site effect maps are not drawn: %s", error)
        return ()
    sites = sorted(fitted.sites_, key=lambda site: -fitted.sites_[site])
    return tuple(
        site_effect_figure(site, target.label, lattice, tissue_difference(
            fitted.statistics_of(fitted.target(site).style)[1], target_means))
        for site in sites[:MAX_DRAWN_SITES] if (target.kind, target.label) != ("site", site))
