"""Doubts about who was scanned where, said before hours of work and again beside the results.

A covariate that is the site, subjects whose scans at two sites are years apart, and a selection of
the fit that takes nobody of a site: none of them stops a run, each changes what its results mean.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from harmonizer.cohort import MAX_TRAVELING_YEARS, Cohort, Scan
from harmonizer.errors import UsageError, did_you_mean
from harmonizer.evaluation.statistics.confounding import ConfoundingCheck, check_confounding
from harmonizer.methods import registry

from ..dataset.records import ScanRecord
from ..settings import Settings
from .fit_selection import sites_left_out

__all__ = ["checked_columns", "modeled_covariates", "confounding_of", "design_warnings",
           "warn_before_work"]

LOGGER = logging.getLogger("pipelines")
MAX_LISTED = 5  # subjects or sites named in one warning


def checked_columns(settings: Settings) -> tuple[str, ...]:
    """Columns that are compared with the site: all that a flag names, beside age, sex and site."""
    selection = tuple(text.split("=", 1)[0] for text in settings.fit_participants if "=" in text)
    names = (*settings.covariates, *selection, *modeled_covariates(settings))
    return tuple(name for name in dict.fromkeys(names) if name not in ("age", "sex", "site"))


def modeled_covariates(settings: Settings) -> tuple[str, ...]:
    """Covariates that the method is asked to keep; () where it has no such option."""
    config: Any = registry.get(settings.backend).config_from(settings.backend_options)
    return tuple(getattr(config, "covariates", ()))


def confounding_of(settings: Settings, cohort: Cohort) -> tuple[ConfoundingCheck, ...]:
    """Age, sex and `checked_columns` against site, in one modality."""
    return check_confounding(
        [scan.subject for scan in cohort], [scan.site for scan in cohort],
        [scan.age for scan in cohort], [scan.sex for scan in cohort], settings.random_seed,
        {name: [scan.covariates.get(name) for scan in cohort]
         for name in checked_columns(settings)})


def design_warnings(settings: Settings, cohort: Cohort) -> tuple[str, ...]:
    """All doubts about the scans of one modality, the gravest first."""
    checks = confounding_of(settings, cohort) if len(cohort.sites) > 1 else ()
    named = checked_columns(settings)
    grave = [check.warning for check in checks if check.is_site]
    others = [check.warning for check in checks
              if check.warning and not check.is_site and check.variable in named]
    return (*grave, *_selection_warning(settings, cohort), *others,
            *_years_apart(settings, cohort), *_unmodeled_covariates(settings))


def _selection_warning(settings: Settings, cohort: Cohort) -> Iterable[str]:
    sites = sites_left_out(settings, cohort)
    if sites:
        count = sum(cohort.sites[site] for site in sites)
        yield (f"--fit-participants {' '.join(settings.fit_participants)} takes no "
               f"{cohort.scans[0].modality} scan of {_some(sites)} ({count} scans). The scanner "
               f"there is not learned: {_what_they_get(settings)}")


def _what_they_get(settings: Settings) -> str:
    """What happens to the scans of a site that the selection left out."""
    config: Any = registry.get(settings.backend).config_from(settings.backend_options)
    how = getattr(config, "left_out_sites", None)
    if how == "contrast":
        return ("these scans only get each tissue's overall contrast of the target, and "
                "differences between regions are not matched. Add subjects of that site to the "
                "fit, or ask for regional matching with --backend-option left_out_sites=regional, "
                "which also removes regional effects of what the selection was by.")
    if how == "regional":
        return ("each of these scans is matched to the target place by place, as asked for, which "
                "also removes regional effects of what the selection was by.")
    return "these scans are harmonized as those of an unseen scanner."


def _years_apart(settings: Settings, cohort: Cohort) -> Iterable[str]:
    apart = cohort.scanned_years_apart() if settings.traveling == "auto" else Cohort(())
    if len(apart):
        names = _some([f"sub-{subject}" for subject in apart.subjects])
        yield (f"{names}: scanned at several sites more than {MAX_TRAVELING_YEARS:g} year apart. "
               f"These {len(apart)} scans are not taken for those of traveling subjects, because "
               "the brain changes with the years.")


def _unmodeled_covariates(settings: Settings) -> Iterable[str]:
    """Covariates whose effects shall survive and that the method could be told to keep."""
    modeled = modeled_covariates(settings)
    missing = [name for name in settings.covariates if name not in modeled]
    if modeled and missing and "fit" in settings.planned_stages:
        option = ",".join((*modeled, *missing))
        yield (f"{', '.join(missing)}: named with --covariates and judged, but not kept by the "
               f"fit. Add --backend-option covariates={option} to have it modelled.")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more


def warn_before_work(settings: Settings, records: Sequence[ScanRecord]) -> None:
    """Log the doubts about a run that looks at all subjects, before its first stage.

    Raises
    ------
    UsageError
        If the method is asked to keep a covariate that no scan has.
    """
    asked = {"fit", "evaluate"} & set(settings.planned_stages)
    if not records or not asked or settings.participant_label or settings.session_label:
        return
    cohort = Cohort(tuple(map(_scan, records)))
    known = {"age", "sex", *(name for scan in cohort for name in scan.covariates)}
    for name in (*modeled_covariates(settings), *settings.covariates):
        if name not in known:
            raise UsageError(f"covariate {name!r}: no scan has a value of it. "
                             f"{did_you_mean(name, known)}")
    said = (text for modality in dict.fromkeys(record.modality for record in records)
            for text in design_warnings(settings, cohort.of_modality(modality)))
    for text in dict.fromkeys(said):
        LOGGER.warning("%s", text)


def _scan(record: ScanRecord) -> Scan:
    """The raw image as a scan: who, where, and what is known."""
    return Scan(record.scan_id, record.subject, record.session, record.modality, record.site,
                record.site_source, record.path, record.path, record.age, record.sex,
                {name: str(value) for name, value in record.covariates.items()
                 if name not in ("age", "sex") and value is not None})
