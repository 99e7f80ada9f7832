"""Selection of the scans that a model is fitted on: participants and quality of the masks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from harmonizer.cohort import Cohort, Scan
from harmonizer.errors import InputError, UsageError, did_you_mean
from harmonizer.files import read_json

from ..dataset.records import covariate_text
from ..outputs.collect import Preprocessed, cohort_of
from ..outputs.names import sidecar
from ..settings import Settings

__all__ = ["FitSelection", "select_fit_scans", "chosen", "sites_left_out",
           "low_confidence_masks", "rating_words"]

LOGGER = logging.getLogger("pipelines")
MAX_LISTED_VALUES = 10


@dataclass(frozen=True)
class FitSelection:
    """Scans that a fit uses and excludes.

    Attributes
    ----------
    cohort : Cohort
        Scans to fit on.
    sites : tuple of str
        Sites without a scan among ``--fit-participants``, or with excluded scans only.
    scans : dict of str to str
        Scans that are excluded because of their brain mask or by ``--exclude``, with the reason.
    """

    cohort: Cohort
    sites: tuple[str, ...] = ()
    scans: dict[str, str] = field(default_factory=dict)


def select_fit_scans(settings: Settings, found: Sequence[Preprocessed]) -> FitSelection:
    """Select the scans of one modality to fit on; excluded scans and sites are logged.

    Raises
    ------
    UsageError
        If ``--fit-participants`` names an unknown label or column.
    InputError
        If the brain masks of all selected scans have low confidence.
    """
    everything = cohort_of(found)
    cohort = chosen(everything, settings.fit_participants)
    reasons = {} if settings.fit_low_confidence_masks else low_confidence_masks(found)
    reasons = {scan.scan_id: reasons[scan.scan_id] for scan in cohort if scan.scan_id in reasons}
    trusted = cohort.where(lambda scan: scan.scan_id not in reasons)
    if len(cohort) and not len(trusted):
        name, why = next(iter(reasons.items()))
        raise InputError(
            f"all {len(cohort)} scans to fit on have a brain mask with low confidence, such as "
            f"{name}: {why}. Check the masks; give better ones with --derivatives, or fit on "
            "these scans with --fit-low-confidence-masks.")
    for name, why in reasons.items():
        LOGGER.warning("%s is left out of the fit: %s. If the mask is correct, add "
                       "--fit-low-confidence-masks.", name, why)
    sites = sites_left_out(settings, everything)
    if sites:
        LOGGER.warning("The fit uses no scan of %s (--fit-participants).", ", ".join(sites))
    return FitSelection(trusted, sites, reasons)


def low_confidence_masks(found: Sequence[Preprocessed]) -> dict[str, str]:
    """Return scans whose brain mask has low confidence, with the reason from its sidecar."""
    reasons = {}
    for item in found:
        path = sidecar(item.paths.mask())
        check = read_json(path).get("QualityCheck", {}) if path.is_file() else {}
        if check.get("low_confidence"):
            reasons[item.scan_id] = (
                f"its brain mask has low confidence ({'; '.join(check.get('reasons', ()))})")
    return reasons


def rating_words(comment: str) -> str:
    """Return the reason for which a rated scan is left out, in words."""
    return "it is rated 'exclude'" + (f" ({comment})" if comment else "")


def sites_left_out(settings: Settings, cohort: Cohort) -> tuple[str, ...]:
    """Return the sites of a cohort without a scan among ``--fit-participants``.

    Empty if no participant is selected.
    """
    if not settings.fit_participants:
        return ()
    selected = chosen(cohort, settings.fit_participants, strict=False).sites
    return tuple(site for site in cohort.sites if selected and site not in selected)


def chosen(cohort: Cohort, wanted: tuple[str, ...], strict: bool = True) -> Cohort:
    """Select the scans of ``--fit-participants``: labels, and conditions that must all hold.

    Raises
    ------
    UsageError
        If ``strict`` and a label or a column is unknown, or no scan is left.
    """
    conditions = [_condition(cohort, text, strict) for text in wanted if "=" in text]
    labels = {text for text in wanted if "=" not in text}
    for label in sorted(labels - set(cohort.subjects)) if strict else ():
        raise UsageError(f"--fit-participants: no selected participant {label!r}. "
                         f"{did_you_mean(label, cohort.subjects)}")
    selected = cohort.where(lambda s: (not labels or s.subject in labels)
                        and all(holds(s) for holds in conditions))
    if strict and wanted and len(cohort) and not len(selected):
        raise UsageError(f"--fit-participants {' '.join(wanted)}: no scan matches. "
                         f"{_values_of(cohort, wanted)}")
    return selected


def _condition(cohort: Cohort, text: str, strict: bool) -> Callable[[Scan], bool]:
    """Return the condition ``column=value`` as a function of a scan."""
    column, value = text.split("=", 1)
    columns = {"sex", "site", *(key for scan in cohort for key in scan.covariates)}
    if strict and len(cohort) and column not in columns:
        raise UsageError(f"--fit-participants {text}: no column {column!r}. "
                         f"{did_you_mean(column, columns)}")
    values = (value, _number_text(value))
    return lambda scan: _value(scan, column) in values


def _number_text(text: str) -> str:
    """Return a number as `covariate_text` writes it, other text unchanged."""
    try:
        return covariate_text(float(text))
    except ValueError:
        return text


def _value(scan: Scan, column: str) -> str:
    return str(scan.covariates.get(column, getattr(scan, column, None)))


def _values_of(cohort: Cohort, wanted: Sequence[str]) -> str:
    """List the values of the requested columns in the selected scans."""
    columns = dict.fromkeys(text.split("=", 1)[0] for text in wanted if "=" in text)
    values = {name: sorted({_value(scan, name) for scan in cohort} - {"None"}) for name in columns}
    return " ".join(f"Values of {name}: {', '.join(found[:MAX_LISTED_VALUES]) or 'none'}"
                    f"{', ...' if len(found) > MAX_LISTED_VALUES else ''}."
                    for name, found in values.items())
