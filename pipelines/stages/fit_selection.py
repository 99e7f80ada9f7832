"""Which scans a model is fitted on: ``--fit-participants``, and masks that can be trusted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from harmonizer.cohort import Cohort, Scan
from harmonizer.errors import InputError, UsageError, did_you_mean
from harmonizer.files import read_json

from ..outputs.collect import Preprocessed, cohort_of
from ..outputs.names import sidecar
from ..settings import Settings

__all__ = ["FitSelection", "select_fit_scans", "chosen", "sites_left_out", "mask_doubts"]

LOGGER = logging.getLogger("pipelines")


@dataclass(frozen=True)
class FitSelection:
    """Scans that a fit uses, and those that it leaves out.

    Attributes
    ----------
    cohort : scans to fit on
    sites : sites of which ``--fit-participants`` takes no scan
    scans : scan_id -> why its brain mask keeps it out
    """

    cohort: Cohort
    sites: tuple[str, ...] = ()
    scans: dict[str, str] = field(default_factory=dict)


def select_fit_scans(settings: Settings, found: Sequence[Preprocessed]) -> FitSelection:
    """Choose the scans of one modality that a model is fitted on; what is left out is logged.

    Raises
    ------
    UsageError
        If ``--fit-participants`` names who or what is not there.
    InputError
        If every chosen scan has a doubtful brain mask.
    """
    everything = cohort_of(found)
    cohort = chosen(everything, settings.fit_participants)
    doubts = {} if settings.fit_low_confidence_masks else low_confidence_masks(found)
    doubts = {scan.scan_id: doubts[scan.scan_id] for scan in cohort if scan.scan_id in doubts}
    trusted = cohort.where(lambda scan: scan.scan_id not in doubts)
    if len(cohort) and not len(trusted):
        name, why = next(iter(doubts.items()))
        raise InputError(
            f"all {len(cohort)} scans to fit on have a doubtful brain mask, such as {name}: {why}. "
            "Look at the masks; give better ones with --derivatives, or fit on these with "
            "--fit-doubtful-masks.")
    for name, why in doubts.items():
        LOGGER.warning("%s is left out of the fit: %s. If the mask is right, add "
                       "--fit-doubtful-masks.", name, why)
    sites = sites_left_out(settings, everything)
    if sites:
        LOGGER.warning("The fit takes no scan of %s (--fit-participants).", ", ".join(sites))
    return FitSelection(trusted, sites, doubts)


def low_confidence_masks(found: Sequence[Preprocessed]) -> dict[str, str]:
    """Scan_id -> why its brain mask is doubtful, from the quality check beside the mask."""
    doubts = {}
    for item in found:
        path = sidecar(item.paths.mask())
        check = read_json(path).get("QualityCheck", {}) if path.is_file() else {}
        if check.get("doubtful"):
            doubts[item.scan_id] = (
                f"its brain mask is doubtful ({'; '.join(check.get('reasons', ()))})")
    return doubts


def sites_left_out(settings: Settings, cohort: Cohort) -> tuple[str, ...]:
    """Sites of one modality of which ``--fit-participants`` takes no scan; () if it takes nobody.
    """
    if not settings.fit_participants:
        return ()
    kept = chosen(cohort, settings.fit_participants, strict=False).sites
    return tuple(site for site in cohort.sites if kept and site not in kept)


def chosen(cohort: Cohort, wanted: tuple[str, ...], strict: bool = True) -> Cohort:
    """The scans of ``--fit-participants``: labels, or column=value (all such must hold).

    Raises
    ------
    UsageError
        If ``strict`` and a label or a column is not there, or nobody is left.
    """
    conditions = [_condition(cohort, text, strict) for text in wanted if "=" in text]
    labels = {text for text in wanted if "=" not in text}
    for label in sorted(labels - set(cohort.subjects)) if strict else ():
        raise UsageError(f"--fit-participants: no selected participant {label!r}. "
                         f"{did_you_mean(label, cohort.subjects)}")
    kept = cohort.where(lambda s: (not labels or s.subject in labels)
                        and all(holds(s) for holds in conditions))
    if strict and wanted and len(cohort) and not len(kept):
        raise UsageError(f"--fit-participants {' '.join(wanted)}: nobody fits. "
                         "Check the values in participants.tsv.")
    return kept


def _condition(cohort: Cohort, text: str, strict: bool) -> Callable[[Scan], bool]:
    """`column=value` as a test of one scan."""
    column, value = text.split("=", 1)
    columns = {"sex", "site", *(key for scan in cohort for key in scan.covariates)}
    if strict and len(cohort) and column not in columns:
        raise UsageError(f"--fit-participants {text}: no column {column!r}. "
                         f"{did_you_mean(column, columns)}")
    return lambda scan: str(scan.covariates.get(column, getattr(scan, column, None))) == value
