"""Checks of options that depend on each other; each raises a `UsageError` with what to give."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from harmonizer.errors import UsageError

from .fields import LEVEL_STAGES, MEMORY_RANGE_GB, MODALITIES, stages_of

if TYPE_CHECKING:
    from .model import Settings

__all__ = ["CHECKS"]

RESERVED_DESCS = ("preproc", "brain")


def _check_levels(settings: Settings) -> None:
    if not settings.levels:
        raise UsageError("no analysis level given. Give participant, group, or both.")


def _check_stages(settings: Settings) -> None:
    for stage in settings.stages:
        if stage not in stages_of(settings.levels):
            level = next(name for name, stages in LEVEL_STAGES.items() if stage in stages)
            raise UsageError(
                f"--stages {stage} belongs to the analysis level {level!r}, and the level "
                f"given is {' '.join(settings.levels)!r}. Add {level!r} or drop the stage."
            )
    if settings.model and "fit" in settings.stages:
        raise UsageError("--model brings a fitted model, --stages fit makes one. Drop one of them.")


def _check_modalities_and_device(settings: Settings) -> None:
    if not settings.modalities:
        raise UsageError(f"--modalities: give one or more of {', '.join(MODALITIES)}.")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", settings.device):
        raise UsageError(f"--device {settings.device}: expected auto, cpu, cuda or cuda:N.")


def _check_export(settings: Settings) -> None:
    if settings.export is None:
        if "export" in settings.stages:
            raise UsageError("--stages export: expected --export raw as well, which says what is "
                             "exported. Add it.")
        if settings.export_dir or settings.export_names != "rec":
            raise UsageError("--export-dir and --export-names have no effect without --export raw. "
                             "Add it, or drop them.")
        return
    if "group" not in settings.levels:
        raise UsageError(
            f"--export {settings.export} belongs to the analysis level 'group', and the level "
            f"given is {' '.join(settings.levels)!r}. Add 'group', or export in a run of its own: "
            "group --stages export --export raw."
        )


def _check_only(settings: Settings) -> None:
    """Refuse several flags that each replace the stages."""
    asked = [f"--{name.replace('_', '-')}" for name in ("dry_run", "reports_only",
                                                        "boilerplate_only")
             if getattr(settings, name)]
    if len(asked) > 1:
        raise UsageError(f"{' and '.join(asked)}: each replaces the run. Give one of them.")
    only = [flag for flag in asked if flag != "--dry-run"]
    if only and (settings.export or settings.stages):
        other = "--export" if settings.export else "--stages"
        raise UsageError(f"{only[0]} runs no stage, and {other} asks for one. Drop one of them.")


def _check_labels(settings: Settings) -> None:
    for flag, prefix, labels in (
        ("--participant-label", "sub-", settings.participant_label),
        ("--session-label", "ses-", settings.session_label),
    ):
        for label in labels:
            if not re.fullmatch(r"[0-9A-Za-z+]+", label):
                raise UsageError(
                    f"{flag} {label!r}: a BIDS label has letters, digits and '+' "
                    f"only (give it with or without {prefix!r})."
                )


def _check_desc(settings: Settings) -> None:
    if not re.fullmatch(r"[0-9A-Za-z+]+", settings.desc):
        raise UsageError(f"--desc {settings.desc!r}: expected letters, digits and '+' only.")
    if settings.desc in RESERVED_DESCS:
        raise UsageError(
            f"--desc {settings.desc!r} names our own preprocessed images and masks. Give another."
        )


def _check_site(settings: Settings) -> None:
    if settings.site and settings.site_from != "auto":
        raise UsageError("--site forces one site for all, --site-from reads it. Drop one of them.")


def _check_target(settings: Settings) -> None:
    settings.target_kind
    settings.backend_options


def _check_fit_participants(settings: Settings) -> None:
    for entry in settings.fit_participants:
        if not re.fullmatch(r"[^=]+=.+|[0-9A-Za-z+]+", entry):
            raise UsageError(
                f"--fit-participants {entry!r}: expected a participant label, or column=value "
                "such as group=HC."
            )


def _check_numbers(settings: Settings) -> None:
    if settings.max_minutes is not None and not settings.max_minutes > 0:
        raise UsageError(f"--max-minutes {settings.max_minutes:g}: expected more than 0.")
    if settings.omp_nthreads > settings.nprocs:
        raise UsageError(
            f"--omp-nthreads {settings.omp_nthreads} is more than --nprocs {settings.nprocs}: one "
            "process may not use more threads than all together. Lower it."
        )
    low, high = MEMORY_RANGE_GB
    if settings.mem_gb is not None and not low <= settings.mem_gb <= high:
        raise UsageError(
            f"memory of {settings.mem_gb:g} GB: expected {low:g} to {high:g} GB. State the unit: "
            "--mem 16G, --mem 16000M (without one, --mem is GB below 1000 and MB from there, "
            "--mem-gb is GB)."
        )


def _check_folders(settings: Settings) -> None:
    bids, out, work = (
        Path(os.path.realpath(path))
        for path in (settings.bids_dir, settings.output_dir, settings.work_dir)
    )
    if out == bids:
        raise UsageError(
            f"output folder {out} is the input folder. Give another, such as "
            f"{bids / 'derivatives' / 'harmonizer'}."
        )
    if bids in out.parents and out.relative_to(bids).parts[0] != "derivatives":
        raise UsageError(
            f"output folder {out} lies inside the input folder, and not in its derivatives, where "
            f"BIDS allows it. Give another, such as {bids / 'derivatives' / 'harmonizer'}."
        )
    if work == bids or bids in work.parents:
        raise UsageError(
            f"work folder {work} lies inside the input folder {bids}, which is never written. "
            "Give another with -w."
        )
    if out in bids.parents:
        raise UsageError(f"input folder {bids} lies inside the output folder {out}. Give another.")


def _check_export_folder(settings: Settings) -> None:
    """The exported dataset is a folder of its own; in other datasets only below derivatives/."""
    if settings.export is None:
        return
    folder, bids, out = (Path(os.path.realpath(path)) for path in (
        settings.export_folder, settings.bids_dir, settings.output_dir))
    advice = f"Give another, such as {out.with_name(out.name + '-raw')}, or drop --export-dir."
    for name, dataset in (("input", bids), ("output", out)):
        if folder == dataset or folder in dataset.parents:
            raise UsageError(f"export folder {folder} is or holds the {name} folder. {advice}")
        inside = dataset in folder.parents
        if inside and folder.relative_to(dataset).parts[0] != "derivatives":
            raise UsageError(f"export folder {folder} lies inside the {name} folder, and not in "
                             f"its derivatives, where BIDS allows it. {advice}")


CHECKS: tuple[Callable[[Settings], None], ...] = (
    _check_levels,
    _check_stages,
    _check_modalities_and_device,
    _check_labels,
    _check_desc,
    _check_site,
    _check_target,
    _check_fit_participants,
    _check_numbers,
    _check_folders,
    _check_export,
    _check_export_folder,
    _check_only,
)
