"""The command line: flags into `Settings`, and the questions that only the disk can answer.

Every flag has `default=SUPPRESS`: what was not typed does not exist, so it cannot beat the
configuration file. Flags of other BIDS Apps are taken under all their names, and underscores may
stand for hyphens. Nothing heavy is imported: `--help` must answer at once.
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
    CARD_SUFFIX,
    DETAIL,
    EXPORT_NAMES,
    EXPORTS,
    LEVELS,
    MODALITIES,
    MOVED_MAPS,
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

__all__ = ["build_parser", "check_world", "parse"]

DESCRIPTION = """\
Harmonize brain MRI across scanners: a BIDS dataset from many scanners goes in; the same people, as
if scanned on one scanner, come out as BIDS derivatives, with the evidence for it."""
EPILOG = """\
Underscores may stand for hyphens in all flags (--participant_label, --n_cpus).
stages: participant = preprocess, and harmonize where a model is fitted already; group = fit,
harmonize, evaluate. Both levels in one command run preprocess, fit, harmonize, evaluate. One
participant command per subject, then one group command, does the same.
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
            self.error(unknown_flags_message(unknown, list(self._option_string_actions)))
        return parsed

    def error(self, message: str) -> NoReturn:
        if "required" in message:
            message += (
                ". Give BIDS_DIR OUTPUT_DIR and the level first, then the flags: a flag that takes "
                "several values would swallow them"
            )
        super().error(message)


def build_parser(prog: str = "run.py") -> argparse.ArgumentParser:
    """The parser of the whole command line."""
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
    """What adds a flag to a section of `--help`; `example` is what follows BIDS_DIR OUTPUT_DIR."""
    command = f"Example: {parser.prog} BIDS_DIR OUTPUT_DIR {example}"
    return parser.add_argument_group(title, command).add_argument


def _one_of(choices: Iterable[str]) -> str:
    """Choices in braces; `Settings` checks them, so that a file is held to the same."""
    return "{" + ",".join(choices) + "}"


def _many(**more: Any) -> dict[str, Any]:
    """Arguments of a flag that takes several values and may be repeated."""
    return {"nargs": "+", "action": "extend", **more}


def _add_selection(parser: argparse.ArgumentParser) -> None:
    add = _adder(parser, "which images",
                 "participant --participant-label 01 02 --modalities T1w FLAIR")
    add("--participant-label", "--participant-labels", metavar="LABEL", **_many(),
        help="participants to process, with or without 'sub-' (default: all)")
    add("--session-label", "--session-id", metavar="LABEL", **_many(),
        help="sessions to process, with or without 'ses-' (default: all)")
    add("--modalities", metavar=_one_of(MODALITIES), **_many(),
        help="image types, each harmonized within itself (default: T1w)")
    add("--bids-filter-file", metavar="JSON",
        help='queries by modality, {"t1w": {"acquisition": "mprage", "session": null}}: null = the '
             'entity is absent, "*" = it is there')
    add("--bids-database-dir", metavar="DIR",
        help="pybids index of the dataset, made if absent, else opened as it is")
    add("--skip-bids-validation", "--skip-bids-validator", action=Switch,
        help="do not run bids-validator-deno")
    add("--include-existing", action=Switch,
        help="also fit, harmonize and evaluate scans that are preprocessed in OUTPUT_DIR and whose "
             "image is not in BIDS_DIR, such as those of a withdrawn participant (default: leave "
             "them out and list them)")
    add("-d", "--derivatives", metavar="[NAME=]DIR", **_many(),
        help="folders of precomputed brain masks and preprocessed images (ours, fMRIPrep's, "
             "sMRIPrep's), used where they fit an image's entities and grid")


def _add_sites(parser: argparse.ArgumentParser) -> None:
    add = _adder(parser, "sites", "participant group --site-column scanner --target siteA")
    add("--site-from", metavar=_one_of(SITE_SOURCES),
        help="auto = sessions.tsv, else participants.tsv, else the sidecar's scanner fields; ses "
             "takes session labels as sites (default: auto)")
    add("--site-column", metavar="NAME",
        help="column of sessions.tsv and participants.tsv that names the site (default: site)")
    add("--site", metavar="LABEL", help="one site for all images, whatever the dataset says")


def _add_method(parser: argparse.ArgumentParser) -> None:
    add = _adder(parser, "harmonization",
                 "participant group --backend histogram_matching --backend-option method=landmarks")
    add("--stages", metavar=_one_of(STAGES), **_many(), help="run only these stages of the levels")
    add("--backend", metavar=_one_of(BUILT_IN),
        help="method, or the name of one that another package adds (default: tissue_matching)")
    add("--backend-option", metavar="NAME=VALUE", **_many(),
        help="options of the method, such as method=landmarks or band=0.02; they are fitted with "
             "the model and kept in it")
    add("--target", metavar="TARGET", **_many(),
        help=f"a site label, reference images (.nii, .nii.gz), a site card ({CARD_SUFFIX}), or "
             f"'{SCANNER_FREE}' (default: the target of the images in OUTPUT_DIR, else the site "
             "with most scans)")
    add("--model", metavar="DIR", help="apply this fitted model instead of fitting one")
    add("--fit-participants", metavar="WHO", **_many(),
        help="fit on these only: labels, or column=value such as group=HC (default: everybody)")
    add("--fit-doubtful-masks", action=Switch,
        help="also fit on scans whose brain mask is doubtful (default: they are left out of the "
             "fit, and harmonized as the others)")
    add("--desc", metavar="LABEL",
        help="desc- entity of the harmonized images, letters and digits (default: harmonized)")
    add("--texture", metavar=_one_of(TEXTURE),
        help="bring noise and blur nearer to the target's, or leave them; methods with this option "
             "only (default of tissue_matching: match)")
    add("--detail", metavar=_one_of(DETAIL),
        help="the method's result as it is, or its change of contrast as smooth maps on the "
             "scan's own voxels, so that invented detail cannot pass (default: direct)")
    add("--device", metavar="{auto,cpu,cuda,cuda:N}",
        help="one that is asked for and missing is an error (default: auto)")
    add("--preset", metavar=_one_of(PRESETS),
        help="size of a method with networks: for tests, a CPU, or a GPU (default: small)")
    add("--max-minutes", type=float, metavar="M",
        help="end a training after so long; the same command goes on with it (default: no limit)")
    add("--devices", type=int, metavar="N", help="devices of each node for a training (default: 1)")
    add("--num-nodes", type=int, metavar="K",
        help="nodes for a training, under srun with one task for each device (default: 1)")
    add("--precision", metavar=_one_of(PRECISION),
        help="of training; auto = bf16 where the hardware multiplies it (default: auto)")
    add("--random-seed", type=int, metavar="N",
        help="the one seed of ANTs, numpy and torch (default: 1)")


def _add_evaluation(parser: argparse.ArgumentParser) -> None:
    add = _adder(parser, "evaluation", "group --stages evaluate --covariates age sex group")
    add("--covariates", metavar="NAME", **_many(),
        help="age, sex and columns of participants.tsv whose effects must survive "
             "(default: age sex)")
    add("--reference-site", metavar="LABEL",
        help="site that the others are tested against (default: the target, else the largest)")
    add("--traveling", "--travelling", metavar=_one_of(TRAVELING),
        help="take one label at several sites for one subject, or for several (default: auto)")
    add("--compare", action=Switch,
        help="judge all harmonized variants in OUTPUT_DIR side by side")
    add("--moved-maps", metavar=_one_of(MOVED_MAPS),
        help="write the map of where anatomy moved, of no image, of those that the anatomy guard "
             "flags, or of every one (default: none)")


def _add_images(parser: argparse.ArgumentParser) -> None:
    add = _adder(parser, "preprocessing", "participant --stages preprocess --skull-strip network")
    add("--skull-strip", metavar=_one_of(SKULL_STRIP),
        help="recognize brain-only images, always extract the brain, take images as brain only, "
             "or as auto, but by the network instead of the template (default: auto)")
    add("--sloppy", action=Switch, help="coarse and fast, for tests only: never for results")


def _add_export(parser: argparse.ArgumentParser) -> None:
    add = _adder(parser, "export", "group --stages export --export raw")
    add("--export", metavar=_one_of(EXPORTS),
        help="at the end, also write the harmonized images as a raw-like BIDS dataset, which "
             "fMRIPrep, FreeSurfer and CAT12 take as input")
    add("--export-dir", metavar="DIR",
        help="folder of that dataset (default: OUTPUT_DIR/derivatives/raw-DESC)")
    add("--export-names", metavar=_one_of(EXPORT_NAMES),
        help="names of its images: with the entity rec-DESC, or as in BIDS_DIR (default: rec)")


def _add_resources(parser: argparse.ArgumentParser) -> None:
    add = _adder(parser, "resources", "participant --nprocs 8 --mem 16G -w /scratch/work")
    add("--nprocs", "--nthreads", "--n-cpus", type=int, metavar="N",
        help="CPU threads over all processes (default: those available)")
    add("--omp-nthreads", type=int, metavar="N",
        help="CPU threads of one process (default: 1; people side by side are faster)")
    add("--mem", dest="mem_gb", type=parse_memory, metavar="SIZE",
        help="memory limit; suffix K, M, G or T, without one GB below 1000 and MB from there "
             "(default: 90 %% of the machine)")
    add("--mem-gb", dest="mem_gb", type=_gigabytes, metavar="SIZE",
        help="the same, GB where no suffix is given")
    add("--mem-mb", dest="mem_gb", type=_megabytes, metavar="SIZE",
        help="the same, MB where no suffix is given")
    add("--use-plugin", "--nipype-plugin-file", metavar="YAML",
        help="Nipype plugin: a file with the keys plugin and plugin_args")
    add("-w", "--work-dir", metavar="DIR",
        help="intermediate results, not inside BIDS_DIR; with it a stopped run resumes "
             "(default: ./work)")
    add("--clean-workdir", action=Switch,
        help="first remove what earlier runs left in the work folder, trainings included; not "
             "while another run uses it")


def _add_run(parser: argparse.ArgumentParser) -> None:
    add = _adder(parser, "run", "participant group --dry-run")
    add("--config-file", metavar="TOML",
        help="options from a file, such as an earlier OUT/logs/settings_*.toml; the command line "
             "wins over it")
    add("--stop-on-first-crash", action=Switch,
        help="stop at the first failed step instead of finishing the others")
    add("--dry-run", action=Switch,
        help="print the plan and do nothing: scans, sites, target, what is reused, hours, memory, "
             "disk")
    add("--reports-only", action=Switch,
        help="write the HTML reports again from the results in OUTPUT_DIR, run nothing")
    add("--boilerplate-only", action=Switch,
        help="write the methods text (logs/CITATION.md) of the results in OUTPUT_DIR, run nothing")
    add("--write-graph", action=Switch, help="write the workflow's graph into OUT/logs")
    add("--notrack", action="store_true", help="accepted for habit's sake: nothing is ever sent")
    add("-v", "--verbose", action="count", help="say more; twice: say everything")


def _gigabytes(text: str) -> float:
    return parse_memory(text, default_unit="G")


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
    from .dataset.labels import has_subjects

    raw = "preprocess" in settings.planned_stages or has_subjects(settings.bids_dir)
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
