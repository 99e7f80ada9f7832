"""Warnings about the study design, before the first stage and in the group report.

They name covariates that are confounded with the site, subjects whose scans at two sites are years
apart, and sites without a participant in the fit. None of them stops a run; each changes how the
results must be interpreted.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from harmonizer.cohort import MAX_TRAVELING_YEARS, Cohort
from harmonizer.errors import UsageError, did_you_mean
from harmonizer.evaluation.statistics.confounding import ConfoundingCheck, check_confounding
from harmonizer.methods import registry
from harmonizer.methods.base import Backend

from ..dataset.records import ScanRecord
from ..outputs.selection import scan_of
from ..settings import Settings
from .fit_selection import chosen, sites_left_out

__all__ = ["checked_columns", "modeled_covariates", "confounding_of", "design_warnings",
           "warn_before_work"]

LOGGER = logging.getLogger("pipelines")
MAX_LISTED = 5  # subjects or sites named in one warning


def checked_columns(settings: Settings) -> tuple[str, ...]:
    """Return the columns to compare with the site: those that flags name, without age and sex."""
    selection = tuple(text.split("=", 1)[0] for text in settings.fit_participants if "=" in text)
    names = (*settings.covariates, *selection, *modeled_covariates(settings))
    return tuple(name for name in dict.fromkeys(names) if name not in ("age", "sex", "site"))


def modeled_covariates(settings: Settings) -> tuple[str, ...]:
    """Return the covariates whose effects the method preserves; empty if it has no such option."""
    return _backend(settings).modeled_covariates


def _backend(settings: Settings) -> Backend:
    """Make the backend of a run, not fitted."""
    kind = registry.get(settings.backend)
    return kind(kind.config_from(settings.backend_options))


def confounding_of(settings: Settings, cohort: Cohort) -> tuple[ConfoundingCheck, ...]:
    """Test age, sex and `checked_columns` for confounding with the site, in one modality."""
    return check_confounding(
        [scan.subject for scan in cohort], [scan.site for scan in cohort],
        [scan.age for scan in cohort], [scan.sex for scan in cohort], settings.random_seed,
        {name: [scan.covariates.get(name) for scan in cohort]
         for name in checked_columns(settings)})


def design_warnings(settings: Settings, cohort: Cohort) -> tuple[str, ...]:
    """Return all warnings about the scans of one modality, the most serious first."""
    checks = confounding_of(settings, cohort) if len(cohort.sites) > 1 else ()
    named = checked_columns(settings)
    serious = [check.warning for check in checks if check.is_site]
    others = [check.warning for check in checks
              if check.warning and not check.is_site and check.variable in named]
    return (*serious, *_selection_warning(settings, cohort), *others,
            *_years_apart(settings, cohort), *_unmodeled_covariates(settings))


def _selection_warning(settings: Settings, cohort: Cohort) -> Iterable[str]:
    sites = sites_left_out(settings, cohort)
    if sites:
        count = sum(cohort.sites[site] for site in sites)
        yield (f"--fit-participants {' '.join(settings.fit_participants)} excludes all "
               f"{cohort.scans[0].modality} scans of {_some(sites)} ({count} scans). The scanner "
               f"effect there is not estimated: {_left_out_site_text(settings)}")


def _left_out_site_text(settings: Settings) -> str:
    """Describe how scans of a site without a participant in the fit are harmonized."""
    how = _backend(settings).left_out_site_matching
    if how == "contrast":
        return ("only the overall contrast of each tissue is matched to the target in these "
                "scans, not regional differences. Add subjects of that site to the fit, or use "
                "--backend-option left_out_sites=regional, which also removes regional effects "
                "of the variable that the participants were selected by.")
    if how == "regional":
        return ("these scans are matched to the target regionally, as requested, which also "
                "removes regional effects of the variable that the participants were selected by.")
    return "these scans are harmonized as those of an unseen scanner."


def _years_apart(settings: Settings, cohort: Cohort) -> Iterable[str]:
    years_apart = cohort.scanned_years_apart() if settings.traveling == "auto" else Cohort(())
    if len(years_apart):
        names = _some([f"sub-{subject}" for subject in years_apart.subjects])
        yield (f"{names}: scanned at several sites more than {MAX_TRAVELING_YEARS:g} year apart. "
               f"These {len(years_apart)} scans are not used as scans of traveling subjects, "
               "because the brain changes over years.")


def _unmodeled_covariates(settings: Settings) -> Iterable[str]:
    """Warn of covariates whose effects the method could preserve but is not told to."""
    modeled = modeled_covariates(settings)
    missing = [name for name in settings.covariates if name not in modeled]
    if modeled and missing and "fit" in settings.planned_stages:
        option = ",".join((*modeled, *missing))
        yield (f"{', '.join(missing)}: evaluated (--covariates), but not preserved by the "
               f"fit. Add --backend-option covariates={option} to preserve its effect.")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more


def warn_before_work(settings: Settings, records: Sequence[ScanRecord]) -> None:
    """Log warnings about the design of a run over all subjects, before its first stage.

    Raises
    ------
    UsageError
        If no scan has a value of a covariate.
    """
    stages = {"fit", "evaluate"} & set(settings.planned_stages)
    if not records or not stages or settings.participant_label or settings.session_label:
        return
    cohort = Cohort(tuple(map(scan_of, records)))
    known = {"age", "sex", *(name for scan in cohort for name in scan.covariates)}
    for name in (*modeled_covariates(settings), *settings.covariates):
        if name not in known:
            raise UsageError(f"covariate {name!r}: no scan has a value of it. "
                             f"{did_you_mean(name, known)}")
    texts = [text for modality in dict.fromkeys(record.modality for record in records)
             for text in (*design_warnings(settings, cohort.of_modality(modality)),
                          *_unmodelable(settings, cohort.of_modality(modality)))]
    for text in dict.fromkeys(texts):
        LOGGER.warning("%s", text)


def _unmodelable(settings: Settings, cohort: Cohort) -> Iterable[str]:
    """Warn of requested covariates that the fit cannot model; the fit repeats the reason."""
    scans = chosen(cohort, settings.fit_participants, strict=False).scans
    if "fit" in settings.planned_stages and scans:
        for phrase in _backend(settings).unmodeled_covariates(scans):
            yield f"{scans[0].modality}, covariate {phrase}."
