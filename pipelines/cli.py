"""The command line: flags into `Settings`, and the questions that only the disk can answer.

Every flag has `default=SUPPRESS`: what was not typed does not exist, so it cannot beat the
configuration file. Flags of other BIDS Apps are taken under all their names, and underscores may
stand for hyphens. Nothing heavy is imported: `--help` must answer at once.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from harmonizer import __version__
from harmonizer.errors import UnavailableError, UsageError, did_you_mean

from .settings import (
    CARD_SUFFIX,
    DETAIL,
    LEVELS,
    MODALITIES,
    MOVED_MAPS,
    PRECISION,
    SCANNER_FREE,
    SITE_SOURCES,
    SKULL_STRIP,
    STAGES,
    TRAVELING,
    Settings,
    load_toml,
    parse_memory,
)

__all__ = ["build_parser", "check_world", "parse"]

DESCRIPTION = """\
Harmonize brain MRI across scanners: a BIDS dataset from many scanners goes in; the same people, as
if scanned on one scanner, come out as BIDS derivatives, with the evidence for it."""
EPILOG = """\
Underscores may stand for hyphens in all flags (--participant_label, --n_cpus).
stages: participant = preprocess, harmonize; group = fit, evaluate. Both levels together run
preprocess, fit, harmonize, evaluate in that order.
exit codes: 0 all done; 1 some participants failed; 2 usage; 65 no usable input; 69 device or model
not available; 70 our own fault; 74 results cannot be written; 130 interrupted; 143 terminated."""


class Switch(argparse.Action):
    """A flag that is on (`--x`) or off (`--no-x`), so that it can also overrule a file."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any) -> None:
        first = next(s for s in option_strings if s.startswith("--"))
        names = [*option_strings, f"--no-{first[2:]}"]
        super().__init__(names, dest, nargs=0, **kwargs)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, not option_string.startswith("--no-"))


class Parser(argparse.ArgumentParser):
    """A parser whose errors say what was probably meant; they end with exit code 2."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(_about_unknown(unknown, list(self._option_string_actions)))
        return parsed

    def error(self, message: str) -> NoReturn:
        if "required" in message:
            message += (
                ". Give BIDS_DIR OUTPUT_DIR and the level first, then the flags: a flag that takes "
                "several values would swallow them"
            )
        super().error(message)


def _about_unknown(unknown: list[str], flags: list[str]) -> str:
    flag = next((word for word in unknown if word.startswith("-")), unknown[0]).partition("=")[0]
    near = difflib.get_close_matches(flag, flags, n=1)
    guess = f". Did you mean {near[0]}?" if near else ""
    return f"unrecognized arguments: {' '.join(unknown)}{guess}"


def build_parser(prog: str = "run.py") -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = Parser(
        prog=prog,
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("bids_dir", metavar="BIDS_DIR", help="raw BIDS dataset; only read")
    parser.add_argument("output_dir", metavar="OUTPUT_DIR",
                        help="derivative dataset; jobs of several participants may share it")
    parser.add_argument("levels", metavar="LEVEL", nargs="+",
                        help=f"analysis level, one or both: {', '.join(LEVELS)}")
    parser.add_argument("--version", action="version", version=f"harmonizer {__version__}",
                        help="print the version and exit")
    for add in (_add_selection, _add_sites, _add_method, _add_evaluation, _add_images,
                _add_resources, _add_run):
        add(parser)
    return parser


def _adder(parser: argparse.ArgumentParser, title: str) -> Callable[..., Any]:
    return parser.add_argument_group(title).add_argument


def _many(**more: Any) -> dict[str, Any]:
    """Arguments of a flag that takes several values and may be repeated."""
    return {"nargs": "+", "action": "extend", **more}


def _add_selection(parser: argparse.ArgumentParser) -> None:
    add = _adder(parser, "which images")
    add("--participant-label", metavar="LABEL", **_many(),
        help="participants to process, with or without 'sub-' (default: all)")
    add("--session-label", "--session-id", metavar="LABEL", **_many(),
        help="sessions to process, with or without 'ses-' (default: all)")
    add("--modalities", metavar="SUFFIX", **_many(),
        help=f"image types, each harmonized within itself: {', '.join(MODALITIES)} (default: T1w)")
    add("--bids-filter-file", metavar="JSON",
        help='queries by modality, {"t1w": {"acquisition": "mprage", "session": null}}: null = the '
             'entity is absent, "*" = it is there')
    add("--bids-database-dir", metavar="DIR",
        help="pybids index of the dataset, made if absent, else opened as it is")
    add("--skip-bids-validation", "--skip-bids-validator", action=Switch,
        help="do not run bids-validator-deno")
    add("-d", "--derivatives", metavar="[NAME=]DIR", **_many(),
        help="folders of precomputed brain masks and preprocessed images (ours, fMRIPrep's, "
             "sMRIPrep's), used where they fit an image's entities and grid")


def _add_sites(parser: argparse.ArgumentParser) -> None:
    add = _adder(parser, "sites")
    add("--site-from", metavar="SOURCE",
        help=f"{', '.join(SITE_SOURCES)}; auto = sessions.tsv, else participants.tsv, else the "
             "sidecar's scanner fields; 'ses' takes session labels as sites (default: auto)")
    add("--site-column", metavar="NAME",
        help="column of sessions.tsv and participants.tsv that names the site (default: site)")
    add("--site", metavar="LABEL", help="one site for all images, whatever the dataset says")


def _add_method(parser: argparse.ArgumentParser) -> None:
    add = _adder(parser, "harmonization")
    add("--stages", metavar="STAGE", **_many(),
        help=f"run only these stages of the levels: {', '.join(STAGES)}")
    add("--backend", metavar="NAME", help="method (default: tissue_matching)")
    add("--backend-option", metavar="NAME=VALUE", **_many(),
        help="options of the method, such as method=landmarks or band=0.02; they are fitted with "
             "the model and kept in it")
    add("--target", metavar="TARGET", **_many(),
        help=f"a site label, reference images (.nii, .nii.gz), a site card ({CARD_SUFFIX}), or "
             f"'{SCANNER_FREE}' (default: the site with most scans)")
    add("--model", metavar="DIR", help="apply this fitted model instead of fitting one")
    add("--fit-participants", metavar="WHO", **_many(),
        help="fit on these only: labels, or column=value such as group=HC (default: everybody)")
    add("--desc", metavar="LABEL",
        help="desc- entity of the harmonized images, letters and digits (default: harmonized)")
    add("--detail", metavar="HOW",
        help=f"{', '.join(DETAIL)}: the method's result as it is, or its change of contrast as "
             "smooth maps on the scan's own voxels, so that invented detail cannot pass "
             "(default: direct)")
    add("--device", metavar="DEVICE",
        help="auto, cpu, cuda, cuda:N; one that is asked for and missing is an error "
             "(default: auto)")
    add("--preset", metavar="SIZE",
        help="size of a method with networks: tiny (tests), small (CPU), paper (GPU) "
             "(default: small)")
    add("--max-minutes", type=float, metavar="M",
        help="end a training after so long; the same command goes on with it (default: no limit)")
    add("--devices", type=int, metavar="N", help="devices of each node for a training (default: 1)")
    add("--num-nodes", type=int, metavar="K",
        help="nodes for a training, under srun with one task for each device (default: 1)")
    add("--precision", metavar="HOW",
        help=f"{', '.join(PRECISION)}: of training; auto = bf16 where the hardware multiplies it "
             "(default: auto)")
    add("--random-seed", type=int, metavar="N",
        help="the one seed of ANTs, numpy and torch (default: 1)")


def _add_evaluation(parser: argparse.ArgumentParser) -> None:
    add = _adder(parser, "evaluation")
    add("--covariates", metavar="NAME", **_many(),
        help="age, sex and columns of participants.tsv whose effects must survive "
             "(default: age sex)")
    add("--reference-site", metavar="LABEL",
        help="site that the others are tested against (default: the target, else the largest)")
    add("--traveling", "--travelling", metavar="HOW",
        help=f"{', '.join(TRAVELING)}: take one label at several sites for one person, or for "
             "several people (default: auto)")
    add("--compare", action=Switch,
        help="judge all harmonized variants in OUTPUT_DIR side by side")
    add("--moved-maps", metavar="WHICH",
        help=f"{', '.join(MOVED_MAPS)}: write the map of where anatomy moved, of no image, of "
             "those that the anatomy guard flags, or of every one (default: none)")


def _add_images(parser: argparse.ArgumentParser) -> None:
    add = _adder(parser, "preprocessing")
    add("--skull-strip", metavar="HOW",
        help=f"{', '.join(SKULL_STRIP)}: recognise brain-only images, always extract the brain, "
             "take images as brain only, or as auto, but by the network instead of the template "
             "(default: auto)")
    add("--sloppy", action=Switch, help="coarse and fast, for tests only: never for results")


def _add_resources(parser: argparse.ArgumentParser) -> None:
    add = _adder(parser, "resources")
    add("--nprocs", "--nthreads", "--n-cpus", type=int, metavar="N",
        help="CPU threads over all processes (default: those available)")
    add("--omp-nthreads", type=int, metavar="N",
        help="CPU threads of one process (default: 1; people side by side are faster)")
    add("--mem", "--mem-gb", dest="mem_gb", type=parse_memory, metavar="SIZE",
        help="memory limit; suffix K, M, G or T, without one GB (default: 90 %% of the machine)")
    add("--mem-mb", dest="mem_gb", type=_megabytes, metavar="SIZE",
        help="the same, MB where no suffix is given")
    add("--use-plugin", "--nipype-plugin-file", metavar="YAML",
        help="Nipype plugin: a file with the keys plugin and plugin_args")
    add("-w", "--work-dir", metavar="DIR",
        help="intermediate results, not inside BIDS_DIR; with it a stopped run resumes "
             "(default: ./work)")


def _add_run(parser: argparse.ArgumentParser) -> None:
    add = _adder(parser, "run")
    add("--config-file", metavar="TOML",
        help="options from a file, such as an earlier OUT/logs/settings_*.toml; the command line "
             "wins over it")
    add("--stop-on-first-crash", action=Switch,
        help="stop at the first failed step instead of finishing the others")
    add("--dry-run", action=Switch, help="build the workflows and say what would be done")
    add("--write-graph", action=Switch, help="write the workflow's graph into OUT/logs")
    add("--notrack", action="store_true", help="accepted for habit's sake: nothing is ever sent")
    add("-v", "--verbose", action="count", help="say more; twice: say everything")


def _megabytes(text: str) -> float:
    return parse_memory(text, default_unit="M")


def parse(argv: Sequence[str], prog: str = "run.py") -> Settings:
    """Settings from the command line over the configuration file over the defaults.

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
    """`--omp_nthreads=4` as `--omp-nthreads=4`; values keep their underscores."""
    flag, equals, value = word.partition("=")
    is_flag = re.fullmatch(r"--[a-z][a-z_-]*", flag) is not None
    return flag.replace("_", "-") + equals + value if is_flag else word


def named_folders(entries: Sequence[str]) -> dict[str, str]:
    """{name: folder} from `[NAME=]DIR` texts; a folder without a name has that of its last part.

    Raises
    ------
    UsageError
        If two folders have one name.
    """
    folders: dict[str, str] = {}
    for entry in entries:
        match = re.fullmatch(r"([0-9A-Za-z][\w.-]*)=(.+)", entry)
        name, folder = match.groups() if match else (Path(entry).absolute().name, entry)
        if name in folders:
            raise UsageError(
                f"--derivatives: {folders[name]} and {folder} are both named {name!r}. "
                "Name them: -d first=DIR second=DIR."
            )
        folders[name] = folder
    return folders


def check_world(settings: Settings) -> None:
    """Ask the disk and the machine what the settings take for granted.

    Raises
    ------
    UsageError
        A folder, file, participant, session or backend that was named is not there.
    UnavailableError
        The model folder or the device that was asked for is not there.
    """
    for check in (_check_data, _check_labels, _check_files, _check_backend, _check_device):
        check(settings)


def _source(settings: Settings) -> Path:
    """Where the participants are: in the raw data, or, without them, in the output folder."""
    raw = "preprocess" in settings.planned_stages or settings.bids_dir.is_dir()
    return settings.bids_dir if raw else settings.output_dir


def _check_data(settings: Settings) -> None:
    if "preprocess" in settings.planned_stages:
        _require_folder("BIDS_DIR", settings.bids_dir)
    elif not settings.output_dir.is_dir():
        raise UsageError(
            f"OUTPUT_DIR {settings.output_dir}: no such folder, and the stages "
            f"{', '.join(settings.planned_stages)} start from preprocessed images in it. Run "
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
    if set(settings.levels) == set(LEVELS):  # else earlier jobs may know more people
        require_labels("--fit-participants", "sub-", fit, known)


def _check_files(settings: Settings) -> None:
    from .dataset.filters import load_filters

    load_filters(settings.bids_filter_file)
    for name, folder in settings.derivatives.items():
        _require_folder(f"--derivatives {name}", folder)
    if settings.use_plugin:
        from .workflows.engine import load_plugin

        load_plugin(settings.use_plugin)
    if settings.target_kind in ("images", "card"):
        for target in settings.target:
            if not Path(target).is_file():
                raise UsageError(f"--target {target}: no such file. Check the path.")
    if settings.model and not settings.model.is_dir():
        raise UnavailableError(
            f"--model {settings.model}: no such folder. Expected a fitted model, such as "
            "OUT/models/<backend>."
        )


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
    """Look for CUDA only if it was asked for: importing torch takes seconds."""
    if not settings.device.startswith("cuda"):
        return
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = int(settings.device.partition(":")[2] or 0)
    if index >= count:
        raise UnavailableError(
            f"--device {settings.device}: torch {torch.__version__} sees {count} CUDA devices. "
            "Check the driver, the container's GPU flag (docker --gpus all, apptainer --nv) and "
            "CUDA_VISIBLE_DEVICES, or give --device cpu."
        )
