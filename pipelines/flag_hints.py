"""Replacements for flags of other BIDS Apps that this app does not have.

Users of fMRIPrep, sMRIPrep, MRIQC, QSIPrep and of ComBat tools type these from habit. Each entry is
the second half of the sentence "--flag is not a flag of this app: ...".
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence

__all__ = ["HINTS", "unknown_flags_message"]

_NO_FREESURFER = ("no FreeSurfer is run here. Drop it; `group --export raw` writes the harmonized "
                  "images as input for FreeSurfer (docs/how-to/feed-other-tools.md)")
_EACH_IMAGE = "each image is processed by itself, runs and sessions are never averaged. Drop it"
_FILTER = "images are selected by their entities with --bids-filter-file"
_SPACES = ("results are written on the scan's own grid and on the grid of MNI152NLin2009aSym. "
           "Drop it")
_RERUN = "the same command resumes and reuses finished results. Drop it"
_NOTHING_SENT = "no data are sent. Drop it"
_SKULL = "give --skull-strip"
_TARGET = "the target is given with --target"

HINTS = {
    "--output-layout": "the output folder always is a BIDS derivative dataset. Drop it",
    "--debug": "-vv shows everything, --stop-on-first-crash stops at the first error; "
               "OUTPUT_DIR/logs has log and crash files, and the work folder keeps the steps of "
               "scans that failed",
    "--resource-monitor": "memory and time of each step are listed in docs/benchmarks.md, and "
                          "benchmarks/memory.py measures them; on SLURM ask seff or sacct. --mem "
                          "sets a limit",
    "--mem-mb": "give --mem 16000M",
    "--low-mem": "--mem sets a limit, and --nprocs 1 takes the least memory",
    "--md-only-boilerplate": "the methods text is Markdown only: --boilerplate-only",
    "--output-spaces": _SPACES,
    "--output-resolution": _SPACES,
    "--template": _SPACES,
    "--skull-strip-template": _SPACES,
    "--level": "parts of the work are chosen with --stages",
    "--preproc-only": "give `participant --stages preprocess`",
    "--preprocess-only": "give `participant --stages preprocess`",
    "--harmonize-only": "give `participant --stages harmonize`",
    "--anat-only": "anatomical images are all that is used. Drop it",
    "--anat-derivatives": "give --derivatives",
    "--longitudinal": _EACH_IMAGE,
    "--subject-anatomical-reference": _EACH_IMAGE,
    "--skull-strip-t1w": _SKULL,
    "--skull-strip-mode": _SKULL,
    "--skull-strip-fixed-seed": "there is one seed for everything: --random-seed",
    "--seed": "give --random-seed",
    "--ignore": _FILTER,
    "--task-id": _FILTER,
    "--run-id": _FILTER,
    "--echo-idx": _FILTER,
    "--fs-license-file": _NO_FREESURFER,
    "--fs-no-reconall": _NO_FREESURFER,
    "--fs-no-resume": _NO_FREESURFER,
    "--fs-subjects-dir": _NO_FREESURFER,
    "--no-submm-recon": _NO_FREESURFER,
    "--cifti-output": _NO_FREESURFER,
    "--no-msm": _NO_FREESURFER,
    "--run-uuid": "each run has a name of its own in OUTPUT_DIR/logs. Drop it",
    "--resume": _RERUN,
    "--continue": _RERUN,
    "--force": _RERUN + ", or start again with --clean-workdir and another OUTPUT_DIR",
    "--overwrite": "nothing is overwritten. Keep several results with --desc, or "
                   "give another OUTPUT_DIR",
    "--bids-database-wipe": "delete the folder of --bids-database-dir; it is made again",
    "--track-carbon": _NOTHING_SENT,
    "--no-sub": _NOTHING_SENT,
    "--notelemetry": _NOTHING_SENT,
    "--gpu": "give --device cuda",
    "--use-cuda": "give --device cuda",
    "--n-gpu-procs": "one scan at a time is on the GPU. Drop it",
    "--n-jobs": "give --nprocs",
    "--n-procs": "give --nprocs",
    "--cpus": "give --nprocs",
    "--ants-nthreads": "give --omp-nthreads",
    "--float32": "images are always written as float32. Drop it",
    "--method": "give --backend",
    "--site-col": "give --site-column",
    "--batch": "the scanner of each scan comes from --site-column or --site-from",
    "--batch-col": "the scanner of each scan comes from --site-column or --site-from",
    "--ref-batch": _TARGET,
    "--reference": _TARGET,
    "--target-site": _TARGET,
    "--config": "give --config-file",
    "--output-dir": "it is the second positional argument: BIDS_DIR OUTPUT_DIR LEVEL",
    "--bids-dir": "it is the first positional argument: BIDS_DIR OUTPUT_DIR LEVEL",
}
"""Flag with hyphens -> what to do instead, without a final full stop."""


def unknown_flags_message(unknown: Sequence[str], known: Collection[str]) -> str:
    """Return the error for arguments that the parser does not know, with a suggestion for each.

    Parameters
    ----------
    unknown : sequence of str
        Arguments that were not recognized, values included.
    known : collection of str
        All flags of the parser.
    """
    flags = [word.partition("=")[0] for word in unknown if word.startswith("-")]
    suggestions = [text for flag in flags or unknown[:1] if (text := _suggestion(flag, known))]
    advice = " ".join(suggestions) or "--help lists all flags."
    return f"unrecognized arguments: {' '.join(unknown)}. {advice}"


def _suggestion(flag: str, known: Collection[str]) -> str:
    longer = [name for name in known if len(flag) > 3 and name.startswith(flag)]
    near = longer or difflib.get_close_matches(flag, [*known, *HINTS], n=1)
    name = flag if flag in HINTS else next(iter(near), "")
    if name in HINTS:
        return f"{name} is not a flag of this app: {HINTS[name]}."
    return f"Did you mean {name}?" if name else ""
