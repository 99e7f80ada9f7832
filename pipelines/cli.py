"""Command-line parser, and checks of the arguments that need the disk.

Every flag has `default=SUPPRESS`: a flag that was not given cannot override the configuration file.
Flags are accepted under the names that other BIDS Apps use, and underscores may replace hyphens.
Nothing heavy is imported, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from harmonizer import __version__
from harmonizer.errors import UnavailableError, UsageError, did_you_mean
from harmonizer.methods.registry import BUILT_IN

from .flag_hints import unknown_flags_message
from .settings import (
    ANATOMY_CHANGE_MAPS,
    CARD_SUFFIX,
    DETAIL,
    EXPORT_NAMES,
    EXPORTS,
    LEVELS,
    MODALITIES,
    PRECISION,
    PRESETS,
    SCANNER_FREE,
    SITE_SOURCES,
    SKULL_STRIP,
    STAGES,
    TEXTURE,
    TRAVELING,
    Settings,
    load_toml,
    parse_memory,
)

__all__ = ["build_parser", "check_environment", "named_folders", "parse"]

DESCRIPTION = """\
Harmonize brain MRI across scanners: reads a multi-site BIDS dataset, removes scanner effects from
the images, and writes BIDS derivatives with an evaluation report."""
EPILOG = """\
Underscores may replace hyphens in all flags (--participant_label, --n_cpus).
stages: participant = preprocess, and harmonize if a model is fitted; group = fit, harmonize,
evaluate. Both levels in one command run preprocess, fit, harmonize, evaluate. One participant
command for each participant, followed by one group command, gives the same result.
exit codes: 0 all done; 1 some participants failed; 2 usage; 65 no usable input; 69 device or model
not available; 70 internal error; 74 results cannot be written; 130 interrupted; 143 terminated."""


class Switch(argparse.Action):
    """A flag that is on (`--x`) or off (`--no-x`), so that it can also override a file."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any) -> None:
        first = next(s for s in option_strings if s.startswith("--"))
        names = [*option_strings, f"--no-{first[2:]}"]
        super().__init__(names, dest, nargs=0, **kwargs)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, not option_string.startswith("--no-"))


class Parser(argparse.ArgumentParser):
    """Parser whose errors suggest the nearest flag; they end with exit code 2."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(unknown_flags_message(unknown, list(self._option_string_actions)))
        return parsed

    def error(self, message: str) -> NoReturn:
        if "required" in message:
            message += (
    ". Give BIDS_DIR OUTPUT_DIR and the level first, then the flags: a flag with several "
    "values takes all words that follow it" )
        super().error(message)


def build_parser(prog: str = "run.py") -> argparse.ArgumentParser:
    """Build the parser of the command line; `prog` is the name of the program in messages."""
    parser = Parser(
        prog=prog,
        usage=f"%(prog)s BIDS_DIR OUTPUT_DIR {_one_of(LEVELS)} [...] [FLAGS]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("bids_dir", metavar="BIDS_DIR", help="raw BIDS dataset; only read")
    parser.add_argument("output_dir", metavar="OUTPUT_DIR",
                        help="derivative dataset; jobs of several participants may share it")
    parser.add_argument("levels", metavar=_one_of(LEVELS), nargs="+",
                        help="analysis level, one or both")
    parser.add_argument("--version", action="version", version=f"harmonizer {__version__}",
                        help="print the version and exit")
    for add in (_add_selection, _add_sites, _add_method, _add_evaluation, _add_images, _add_export,
                _add_resources, _add_run):
        add(parser)
    return parser


def _adder(parser: argparse.ArgumentParser, title: str, example: str) -> Callable[..., Any]:
    """Add a section to `--help`; return the function that adds its flags."""
    command = f"Example: {parser.prog} BIDS_DIR OUTPUT_DIR {example}"
    return parser.add_argument_group(title, command).add_argument


def _one_of(choices: Iterable[str]) -> str:
    """Format choices in braces; `Settings` checks them, so that files are checked too."""
    return "{" + ",".join(choices) + "}"


def _many(**more: Any) -> dict[str, Any]:
    """Return the arguments of a flag that takes several values and may be repeated."""
    return {"nargs": "+", "action": "extend", **more}


def _add_selection(parser: argparse.ArgumentParser) -> None:
    add = _adder(parser, "which images",
                 "participant --participant-label 01 02 --modalities T1w FLAIR")
    add("--participant-label", "--participant-labels", metavar="LABEL", **_many(),
        help="participants to process, with or without 'sub-' (default: all)")
    add("--session-label", "--session-id", metavar="LABEL", **_many(),
        help="sessions to process, with or without 'ses-' (default: all)")
    add("--modalities", metavar=_one_of(MODALITIES), **_many(),
        help="modalities; each is harmonized separately (default: T1w)")
    add("--bids-filter-file", metavar="JSON",
        help='queries by modality, {"t1w": {"acquisition": "mprage", "session": null}}: null = '
             'without the entity, "*" = with any value')
    add("--bids-database-dir", metavar="DIR",
        help="pybids index of the dataset; built if absent, otherwise opened unchanged")
    add("--skip-bids-validation", "--skip-bids-validator", action=Switch,
        help="do not run bids-validator-deno")
    add("--include-existing", action=Switch,
        help="also fit, harmonize and evaluate preprocessed scans of OUTPUT_DIR whose image is not "
             "in BIDS_DIR (default: exclude and list them)")
    add("-d", "--derivatives", metavar="[NAME=]DIR", **_many(),
        help="derivatives with brain masks and preprocessed images (of this app, fMRIPrep or "
             "sMRIPrep); used if entities and voxel grid match the image")


def _add_sites(parser: argparse.ArgumentParser) -> None:
    add = _adder(parser, "sites", "participant group --site-column scanner --target siteA")
    add("--site-from", metavar=_one_of(SITE_SOURCES),
        help="site source; auto = sessions.tsv, else participants.tsv, else scanner fields of the "
             "sidecar; ses = session labels (default: auto)")
    add("--site-column", metavar="NAME",
        help="column of sessions.tsv and participants.tsv that names the site (default: site)")
    add("--site", metavar="LABEL", help="one site for all images; overrides the dataset")


def _add_method(parser: argparse.ArgumentParser) -> None:
    add = _adder(parser, "harmonization",
                 "participant group --backend histogram_matching --backend-option method=landmarks")
    add("--stages", metavar=_one_of(STAGES), **_many(), help="run only these stages of the levels")
    add("--backend", metavar=_one_of(BUILT_IN),
        help="harmonization method; also one that another package provides (default: "
             "tissue_matching)")
    add("--backend-option", metavar="NAME=VALUE", **_many(),
        help="options of the method, such as method=landmarks or band=0.02; stored in the model")
    add("--target", metavar="TARGET", **_many(),
        help=f"a site label, reference images (.nii, .nii.gz), a site card ({CARD_SUFFIX}), or "
             f"'{SCANNER_FREE}' (default: the target of the images in OUTPUT_DIR, else the site "
             "with the most scans)")
    add("--model", metavar="DIR", help="apply this fitted model instead of fitting one")
    add("--fit-participants", metavar="WHO", **_many(),
        help="participants to fit on: labels, or column=value such as group=HC (default: all)")
    add("--fit-low-confidence-masks", action=Switch,
        help="also fit on scans whose brain mask has low confidence (default: exclude them from "
             "the fit; they are harmonized)")
    add("--exclude", metavar="TSV",
        help="ratings that the reports export: scans rated 'exclude' enter neither the model nor "
             "the statistics; they are harmonized (default: no scan is excluded)")
    add("--desc", metavar="LABEL",
        help="desc- entity of the harmonized images, letters and digits (default: harmonized)")
    add("--texture", metavar=_one_of(TEXTURE),
        help="match noise and blur to the target, or keep them; only methods with this option "
             "(default of tissue_matching: match)")
    add("--detail", metavar=_one_of(DETAIL),
        help="direct = the image that the method returns; guided = only its contrast change, as "
             "smooth maps applied to the scan, which excludes invented detail (default: direct)")
    add("--device", metavar="{auto,cpu,cuda,cuda:N}",
        help="device of networks; a missing CUDA device is an error (default: auto)")
    add("--preset", metavar=_one_of(PRESETS),
        help="size of a learned method: for tests, a CPU, or a GPU (default: small)")
    add("--max-minutes", type=float, metavar="M",
        help="time limit of a training in minutes; the same command resumes it (default: no limit)")
    add("--devices", type=int, metavar="N", help="devices for each node of a training (default: 1)")
    add("--num-nodes", type=int, metavar="K",
        help="nodes of a training, under srun with one task for each device (default: 1)")
    add("--precision", metavar=_one_of(PRECISION),
        help="precision of training; auto = bf16 if the hardware supports it (default: auto)")
    add("--random-seed", type=int, metavar="N",
        help="seed of ANTs, numpy and torch (default: 1)")


def _add_evaluation(parser: argparse.ArgumentParser) -> None:
    add = _adder(parser, "evaluation", "group --stages evaluate --covariates age sex group")
    add("--covariates", metavar="NAME", **_many(),
        help="age, sex and columns of participants.tsv whose effects the evaluation tests for "
             "preservation; a fit preserves those of --backend-option covariates=age,sex,NAME "
             "(default: age sex)")
    add("--reference-site", metavar="LABEL",
        help="site that the others are tested against (default: the target, else the largest)")
    add("--traveling", metavar=_one_of(TRAVELING),
        help="auto = one label at several sites is one traveling subject, no = several subjects "
             "(default: auto)")
    add("--compare", action=Switch,
        help="evaluate all harmonized variants in OUTPUT_DIR")
    add("--anatomy-change-maps", metavar=_one_of(ANATOMY_CHANGE_MAPS),
        help="write maps of anatomy changes: for no image, for images that the anatomy guard "
             "flags, or for all (default: none)")


def _add_images(parser: argparse.ArgumentParser) -> None:
    add = _adder(parser, "preprocessing", "participant --stages preprocess --skull-strip network")
    add("--skull-strip", metavar=_one_of(SKULL_STRIP),
        help="auto = detect brain-only images; force = always extract the brain; skip = images are "
             "brain only; network = as auto, by a network instead of the template (default: auto)")
    add("--sloppy", action=Switch, help="coarse and fast, for tests only, not for results")


def _add_export(parser: argparse.ArgumentParser) -> None:
    add = _adder(parser, "export", "group --stages export --export raw")
    add("--export", metavar=_one_of(EXPORTS),
        help="also write the harmonized images as a raw-like BIDS dataset, as input for fMRIPrep, "
             "FreeSurfer or CAT12")
    add("--export-dir", metavar="DIR",
        help="folder of that dataset (default: OUTPUT_DIR/derivatives/raw-DESC)")
    add("--export-names", metavar=_one_of(EXPORT_NAMES),
        help="names of its images: with rec-DESC, or as in BIDS_DIR (default: rec)")


def _add_resources(parser: argparse.ArgumentParser) -> None:
    add = _adder(parser, "resources", "participant --nprocs 8 --mem 16G -w /scratch/work")
    add("--nprocs", "--nthreads", "--n-cpus", type=int, metavar="N",
        help="CPU threads over all processes (default: those available)")
    add("--omp-nthreads", type=int, metavar="N",
        help="CPU threads of one process (default: 1; scans in parallel are faster)")
    add("--mem", dest="mem_gb", type=parse_memory, metavar="SIZE",
        help="memory limit with suffix K, M, G or T; without one, GB below 1000 and MB from 1000 "
             "(default: 90 %% of the machine)")
    add("--mem-gb", dest="mem_gb", type=_gigabytes, metavar="SIZE",
        help="memory limit, in GB without a suffix")
    add("--use-plugin", "--nipype-plugin-file", metavar="YAML",
        help="Nipype plugin: a file with the keys plugin and plugin_args")
    add("-w", "--work-dir", metavar="DIR",
        help="folder of intermediate results, outside BIDS_DIR; a stopped run resumes from it "
             "(default: ./work)")
    add("--clean-workdir", action=Switch,
        help="first remove the results of earlier runs from the work folder, including trainings; "
             "not while another run uses it")


def _add_run(parser: argparse.ArgumentParser) -> None:
    add = _adder(parser, "run", "participant group --dry-run")
    add("--config-file", metavar="TOML",
        help="options from a file, such as OUTPUT_DIR/logs/settings_*.toml of an earlier run; the "
             "command line overrides it")
    add("--stop-on-first-crash", action=Switch,
        help="stop at the first failed step instead of finishing the others")
    add("--dry-run", action=Switch,
        help="print the plan and run nothing: scans, sites, target, reused results, time, memory, "
             "disk")
    add("--reports-only", action=Switch,
        help="write the HTML reports again from OUTPUT_DIR, run nothing")
    add("--boilerplate-only", action=Switch,
        help="write the methods text (logs/CITATION.md) of OUTPUT_DIR, run nothing")
    add("--write-graph", action=Switch, help="write the graph of the workflow into OUTPUT_DIR/logs")
    add("--notrack", action="store_true",
        help="accepted for compatibility with fMRIPrep; no data are ever sent")
    add("-v", "--verbose", action="count", help="log details; twice: also details of all libraries")


def _gigabytes(text: str) -> float:
    return parse_memory(text, default_unit="G")


def parse(argv: Sequence[str], prog: str = "run.py") -> Settings:
    """Parse the command line; it overrides the configuration file, which overrides the defaults.

    Raises
    ------
    SystemExit
        From argparse: 0 after `--help` and `--version`, 2 after a usage error.
    UsageError
        If a value is wrong, wherever it came from.
    """
    typed = vars(build_parser(prog).parse_args([_hyphens(word) for word in argv]))
    if "derivatives" in typed:
        typed["derivatives"] = named_folders(typed["derivatives"])
    file = load_toml(typed["config_file"]) if "config_file" in typed else {}
    return Settings.from_dict({**file, **typed}, origin="command line")


def _hyphens(word: str) -> str:
    """Replace underscores of a flag by hyphens; values keep theirs."""
    flag, equals, value = word.partition("=")
    is_flag = re.fullmatch(r"--[a-z][a-z_-]*", flag) is not None
    return flag.replace("_", "-") + equals + value if is_flag else word


def named_folders(entries: Sequence[str]) -> dict[str, str]:
    """Parse ``[NAME=]DIR`` texts; the default name is the last part of the path.

    Raises
    ------
    UsageError
        If two folders have one name.
    """
    folders: dict[str, str] = {}
    for entry in entries:
        match = re.fullmatch(r"([0-9A-Za-z][\w.-]*)=(.+)", entry)
        name, folder = match.groups() if match else (Path.cwd().joinpath(entry).name, entry)
        if name in folders:
            raise UsageError(
                f"--derivatives: {folders[name]} and {folder} are both named {name!r}. "
                "Name them: -d first=DIR second=DIR."
            )
        folders[name] = folder
    return folders


def check_environment(settings: Settings) -> None:
    """Check that folders, files, labels, method and device of the settings exist.

    Raises
    ------
    UsageError
        A folder, file, participant, session or backend that was named is not there.
    UnavailableError
        The model folder or the requested device does not exist.
    """
    for check in (_check_data, _check_labels, _check_files, _check_backend, _check_device):
        check(settings)


def _source(settings: Settings) -> Path:
    """Return the folder that lists the participants: the raw data, else the output folder."""
    from .dataset.labels import has_subjects

    raw = "preprocess" in settings.planned_stages or has_subjects(settings.bids_dir)
    return settings.bids_dir if raw else settings.output_dir


def _check_data(settings: Settings) -> None:
    if "preprocess" in settings.planned_stages:
        _require_folder("BIDS_DIR", settings.bids_dir)
    elif not settings.output_dir.is_dir():
        raise UsageError(
            f"OUTPUT_DIR {settings.output_dir}: no such folder, and the stages "
            f"{', '.join(settings.planned_stages)} need preprocessed images in it. Run "
            "the participant level first."
        )


def _check_labels(settings: Settings) -> None:
    from .dataset.labels import require_labels, session_labels, subject_labels

    source = _source(settings)
    known = subject_labels(source)
    require_labels("--participant-label", "sub-", settings.participant_label, known)
    if settings.session_label:
        sessions = session_labels(source, settings.participant_label)
        require_labels("--session-label", "ses-", settings.session_label, sessions)
    fit = tuple(entry for entry in settings.fit_participants if "=" not in entry)
    if set(settings.levels) == set(LEVELS):  # otherwise earlier jobs may have more participants
        require_labels("--fit-participants", "sub-", fit, known)


def _check_files(settings: Settings) -> None:
    from .dataset.filters import load_filters
    from .dataset.ratings import read_excluded

    load_filters(settings.bids_filter_file)
    for name, folder in settings.derivatives.items():
        _require_folder(f"--derivatives {name}", folder)
    if settings.use_plugin:
        from .workflows.engine import load_plugin

        load_plugin(settings.use_plugin)
    if settings.exclude:
        _require_file("--exclude", settings.exclude)
        read_excluded(settings.exclude)
    if settings.target_kind in ("images", "card"):
        for target in settings.target:
            _require_file("--target", Path(target))
    if settings.model and not settings.model.is_dir():
        raise UnavailableError(
            f"--model {settings.model}: no such folder. Expected a fitted model, such as "
            "OUT/models/<backend>."
        )


def _require_file(flag: str, path: Path) -> None:
    if not path.is_file():
        raise UsageError(f"{flag} {path}: no such file. Check the path.")


def _require_folder(what: str, folder: Path) -> None:
    if not folder.is_dir():
        came = "is a file" if folder.exists() else "does not exist"
        raise UsageError(f"{what} {folder}: expected a folder, but it {came}. Check the path.")


def _check_backend(settings: Settings) -> None:
    from harmonizer.methods.registry import names

    if settings.backend not in names():
        near = did_you_mean(settings.backend, names())
        raise UsageError(f"--backend {settings.backend!r} is not known. {near}")


def _check_device(settings: Settings) -> None:
    """Check a requested CUDA device; otherwise torch, which takes seconds, is not imported."""
    if not settings.device.startswith("cuda"):
        return
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = int(settings.device.partition(":")[2] or 0)
    if index >= count:
        built_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
        raise UnavailableError(
            f"--device {settings.device}: torch {torch.__version__}, built for {built_for}, sees "
            f"{count} CUDA devices. Check the driver (docs/how-to/containers.md, GPUs and "
            "drivers), the container's GPU flag (docker --gpus all, apptainer --nv) and "
            "CUDA_VISIBLE_DEVICES, or give --device cpu."
        )
    from harmonizer.deep.processor import gpu_problem

    problem = gpu_problem(index)
    if problem:
        raise UnavailableError(
            f"--device {settings.device}: {problem}. Use a PyTorch or an image for another CUDA "
            "(docs/how-to/containers.md, GPUs and drivers), or give --device cpu."
        )
