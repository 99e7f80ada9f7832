"""Every choice of a run in one frozen value that can be printed, saved and loaded again.

    defaults  <  configuration file (TOML)  <  command line

`Settings` checks what can be checked without touching the disk; whether folders, labels and devices
exist is asked in `pipelines.cli`. Relative paths mean the same in a file as on the command line:
relative to the folder where the app was started; they are kept as absolute paths.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from harmonizer.errors import UsageError, did_you_mean

__all__ = [
    "DETAIL",
    "TEXTURE",
    "LEVELS",
    "LEVEL_STAGES",
    "MODALITIES",
    "SCANNER_FREE",
    "STAGES",
    "Settings",
    "available_cpus",
    "load_toml",
    "named_value",
    "parse_memory",
]

STAGES = ("preprocess", "fit", "harmonize", "evaluate", "export")  # in the order of execution
LEVEL_STAGES = {  # `group` after one `participant` job per subject has to finish the work
    "participant": ("preprocess", "harmonize"),
    "group": ("fit", "harmonize", "evaluate", "export"),  # export: only with --export
}
LEVELS = tuple(LEVEL_STAGES)
MODALITIES = ("T1w", "T2w", "FLAIR", "PDw")
SITE_SOURCES = ("auto", "participants", "sessions", "ses", "sidecar")
SKULL_STRIP = ("auto", "force", "skip", "network")
TRAVELING = ("auto", "no")
MOVED_MAPS = ("none", "flagged", "all")
PRECISION = ("auto", "bf16", "fp32")
DETAIL = ("direct", "guided")
TEXTURE = ("match", "keep")
PRESETS = ("tiny", "small", "paper")
EXPORTS = ("raw",)
EXPORT_NAMES = ("rec", "original")
SCANNER_FREE = "scanner-free"
ASKED_ONCE = ("dry_run", "reports_only", "boilerplate_only", "clean_workdir")
RESERVED_DESCS = ("preproc", "brain")
IMAGE_SUFFIXES = (".nii", ".nii.gz")
CARD_SUFFIX = ".safetensors"


def available_cpus() -> int:
    """How many CPUs this process may use: those that a scheduler left it, not those of the box."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


@dataclass(frozen=True)
class Settings:
    """All options of one run, validated; a wrong value is a `UsageError` that says what to give.

    Values are converted first, so text paths and TOML arrays may be passed: `Settings("/bids",
    "/out", ["group"])`.
    """

    bids_dir: Path
    """Folder of the raw BIDS dataset; read, never written."""
    output_dir: Path
    """Folder of the derivative dataset; jobs of several participants may share it."""
    levels: tuple[str, ...]
    """Analysis levels to run: 'participant', 'group' or both."""

    participant_label: tuple[str, ...] = ()
    """Participants to process, without 'sub-'; empty means all."""
    session_label: tuple[str, ...] = ()
    """Sessions to process, without 'ses-'; empty means all."""
    modalities: tuple[str, ...] = ("T1w",)
    """Image types to process, each harmonized within itself."""
    bids_filter_file: Path | None = None
    """JSON file that narrows the images by entities, per modality."""
    bids_database_dir: Path | None = None
    """Folder of a pybids index, made if absent and otherwise opened as it is."""
    skip_bids_validation: bool = False
    """Leave out the BIDS validator."""
    include_existing: bool = False
    """Also use scans that are preprocessed in OUTPUT_DIR and whose image is not in BIDS_DIR."""
    derivatives: dict[str, Path] = field(default_factory=dict, hash=False)
    """Named folders of precomputed masks and preprocessed images, searched in this order."""

    site_from: str = "auto"
    """Where a scan's site is read: auto, participants, sessions, ses or sidecar."""
    site_column: str = "site"
    """Column of participants.tsv and sessions.tsv that names the site."""
    site: str | None = None
    """One site for all scans, whatever the dataset says."""

    stages: tuple[str, ...] = ()
    """Stages asked for by name; empty means all of the levels (see `planned_stages`)."""
    backend: str = "tissue_matching"
    """Name of the harmonization method."""
    backend_option: tuple[str, ...] = ()
    """Options of the method as key=value, such as method=landmarks; its page lists them."""
    target: tuple[str, ...] = ()
    """What to aim at: site label, reference images, site card, 'scanner-free'; empty: default."""
    model: Path | None = None
    """Folder of a fitted model to apply instead of fitting one."""
    fit_participants: tuple[str, ...] = ()
    """Who is used to fit: labels without 'sub-', or column=value; empty means everybody."""
    fit_doubtful_masks: bool = False
    """Also fit on scans whose brain mask is doubtful; they are left out otherwise."""
    covariates: tuple[str, ...] = ()
    """Age, sex and columns of participants.tsv whose effects must survive; empty: age and sex."""
    reference_site: str | None = None
    """Site that the others are tested against; None means the target, else the largest."""
    traveling: str = "auto"
    """auto: one label at several sites is one person; no: they are several people."""
    compare: bool = False
    """Judge every harmonized variant in the output folder side by side, not this desc alone."""
    moved_maps: str = "none"
    """Images whose map of where anatomy moved is written: none, flagged or all."""
    skull_strip: str = "auto"
    """auto: recognise brain-only input; force: always extract; skip: input is brain only; network:
    as auto, but the brain of a whole head is what the network finds."""
    desc: str = "harmonized"
    """Value of the desc entity in the names of the harmonized images."""
    texture: str | None = None
    """What is done about noise and blur, match or keep; None: as the method's own options say."""
    detail: str = "direct"
    """direct: the method's own voxels or map; guided: its change of contrast on the scan's own."""
    device: str = "auto"
    """Where networks run: auto, cpu, cuda or cuda:N."""
    preset: str | None = None
    """Size of a method with networks: tiny (tests), small (CPU), paper (GPU); None: its default."""
    max_minutes: float | None = None
    """Time that a training may take in this call; the same call again goes on."""
    devices: int = 1
    """Devices on each node that a training uses, one process each."""
    num_nodes: int = 1
    """Nodes that a training uses; under srun, with one task for each device."""
    precision: str = "auto"
    """Of training: bf16, fp32, or auto (bf16 on GPUs and on CPUs that multiply it in hardware)."""
    random_seed: int = 1
    """The one seed of ANTs, numpy and torch, 1 to 2147483647."""
    sloppy: bool = False
    """Fast and coarse, for tests only."""

    work_dir: Path = Path("work")
    """Folder for intermediate results; with it a stopped run resumes."""
    nprocs: int = field(default_factory=available_cpus)
    """CPU threads over all processes."""
    omp_nthreads: int = 1
    """CPU threads of one process; scans side by side are faster than threads inside one."""
    mem_gb: float | None = None
    """Memory limit in GB (1e9 bytes); None means 90 % of the machine's."""
    use_plugin: Path | None = None
    """YAML file with Nipype's keys plugin and plugin_args."""
    stop_on_first_crash: bool = False
    """Stop at the first failed step instead of finishing the other scans."""
    dry_run: bool = False
    """Print the plan (scans, target, what is reused, estimated cost) and run nothing."""
    export: str | None = None
    """raw: write the harmonized images as a raw-like BIDS dataset; None: do not."""
    export_dir: Path | None = None
    """Folder of the exported dataset; None: OUTPUT_DIR/derivatives/raw-DESC."""
    export_names: str = "rec"
    """Names of the exported images: rec (with rec-DESC) or original (as in BIDS_DIR)."""
    reports_only: bool = False
    """Write the reports again from the files in the output folder, run nothing."""
    boilerplate_only: bool = False
    """Write the methods text of the files in the output folder, run nothing."""
    clean_workdir: bool = False
    """Empty the work folder of what earlier runs left there, before this run starts."""
    write_graph: bool = False
    """Write the workflow's graph under the output's logs folder."""
    notrack: bool = False
    """Accepted for habit's sake; nothing is ever sent."""
    verbose: int = 0
    """0: progress and warnings; 1: more; 2: everything."""
    config_file: Path | None = None
    """The configuration file that these settings were read from."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = _convert(item.name, item.type, getattr(self, item.name))
            tidy = _TIDY.get(item.name, _unchanged)
            object.__setattr__(self, item.name, tidy(value))
        for check in _CHECKS:
            check(self)

    @property
    def planned_stages(self) -> tuple[str, ...]:
        """The stages of this run in order of execution; a given model takes the place of fit."""
        asked = self.stages or _stages_of(self.levels)
        asked = tuple(stage for stage in asked if stage != "export" or self.export)
        asked += ("export",) if self.export else ()
        skipped = {"fit"} if self.model else set()
        return tuple(stage for stage in STAGES if stage in asked and stage not in skipped)

    @property
    def export_folder(self) -> Path:
        """Folder of the exported dataset: `export_dir`, else one for each desc in the output."""
        return self.export_dir or self.output_dir / "derivatives" / f"raw-{self.desc}"

    @property
    def backend_options(self) -> dict[str, Any]:
        """Flags and `backend_option` by name; a value is JSON where it can be, else text."""
        flags = {"preset": self.preset, "texture": self.texture}
        given = {name: value for name, value in flags.items() if value is not None}
        return {**given, **dict(map(named_value, self.backend_option))}

    @property
    def target_kind(self) -> str:
        """'default', 'site', 'images', 'card' or 'scanner-free'; mixtures are a `UsageError`."""
        kinds = {_target_kind(entry) for entry in self.target} or {"default"}
        if len(kinds) > 1 or (len(self.target) > 1 and kinds != {"images"}):
            raise UsageError(
                f"--target {' '.join(self.target)}: expected one site label, one site card "
                f"({CARD_SUFFIX}), '{SCANNER_FREE}', or one or more reference images "
                "(.nii, .nii.gz). Give one kind."
            )
        return kinds.pop()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for TOML or JSON: paths as text, tuples as lists, unset options left out."""
        return {name: _plain(value) for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], origin: str = "settings") -> Settings:
        """Settings from plain values; an unknown key is a `UsageError` that names `origin`."""
        _refuse_unknown(values, origin)
        missing = [name for name in ("bids_dir", "output_dir", "levels") if name not in values]
        if missing:
            raise UsageError(f"{origin}: {', '.join(missing)} not given. Add them.")
        return cls(**values)

    def to_toml(self) -> str:
        """The settings as TOML text that `--config-file` reads back, without what is asked for
        once: a plan is saved to be carried out, and a repeated run keeps its work folder."""
        import tomli_w

        values = self.to_dict()
        return tomli_w.dumps({k: v for k, v in values.items() if k not in ASKED_ONCE})

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> Settings:
        """Settings from a complete TOML file, such as OUT/logs/settings_*.toml."""
        return cls.from_dict(load_toml(path), origin=str(path))


def load_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The options in a TOML file, hyphens in keys read as underscores.

    Raises
    ------
    UsageError
        If the file is missing, is not TOML, or has a key that is not an option.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:  # pragma: no cover (Python 3.10)
        import tomli as tomllib
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}). Check the path.") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: is not valid TOML ({error}). Repair it.") from error
    values = {key.replace("-", "_"): value for key, value in content.items()}
    _refuse_unknown(values, str(path))
    return values


_UNITS_GB = {"K": 1e-6, "M": 1e-3, "G": 1.0, "T": 1e3}
MEMORY_RANGE_GB = (0.5, 2000.0)  # outside it, the unit was meant to be another one
MIN_BARE_MB = 1000.0  # no machine has 1000 GB by accident; fMRIPrep and QSIPrep count in MB


def parse_memory(text: str, default_unit: str = "") -> float:
    """Return gigabytes (1e9 bytes) of text such as '16', '16G', '16GB', '16000M'; decimal units.

    Without a unit and a `default_unit`, numbers below 1000 are GB and larger ones are MB.

    >>> parse_memory("16000M"), parse_memory("16"), parse_memory("16000")
    (16.0, 16.0, 16.0)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)B?\s*", text, re.IGNORECASE)
    if match is None:
        raise UsageError(f"memory {text!r}: expected a number and K, M, G or T, such as 16G.")
    number, unit = match.groups()
    by_size = "M" if float(number) >= MIN_BARE_MB else "G"
    return float(number) * _UNITS_GB[unit.upper() or default_unit or by_size]


def _refuse_unknown(values: Mapping[str, Any], origin: str) -> None:
    known = {item.name for item in fields(Settings)}
    for key in values:
        if key not in known:
            raise UsageError(f"{origin}: unknown option {key!r}. {did_you_mean(key, known)}")


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


# Conversion: one function for each annotation that occurs above.


def _as_path(value: Any) -> Path:
    return Path(os.path.abspath(os.path.expanduser(_as_text(value))))


def _as_text(value: Any) -> str:
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise TypeError("text")
    return os.fspath(value)


def _as_texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError("a list of texts")
    return tuple(dict.fromkeys(_as_text(item) for item in value))


def _as_paths(value: Any) -> dict[str, Path]:
    if not isinstance(value, Mapping):
        raise TypeError("a table of names and folders")
    return {str(name): _as_path(path) for name, path in value.items()}


def _exactly(kind: type, word: str) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if type(value) is not kind:  # bool is an int to isinstance, and must not pass as one
            raise TypeError(word)
        return value

    return check


def _as_number(value: Any) -> float:
    if type(value) not in (int, float):
        raise TypeError("a number")
    return float(value)


def _or_none(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else convert(value)


_CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "Path": _as_path,
    "Path | None": _or_none(_as_path),
    "str": _as_text,
    "str | None": _or_none(_as_text),
    "tuple[str, ...]": _as_texts,
    "dict[str, Path]": _as_paths,
    "int": _exactly(int, "a whole number"),
    "bool": _exactly(bool, "true or false"),
    "float | None": _or_none(_as_number),
}


def _convert(name: str, annotation: Any, value: Any) -> Any:
    try:
        return _CONVERTERS[annotation](value)
    except TypeError as error:
        raise UsageError(f"{name}: expected {error}, got {value!r}.") from error


def named_value(text: str) -> tuple[str, Any]:
    """(name, value) of ``name=value``; a value is JSON where it can be, else text.

    Raises
    ------
    UsageError
        If name or equals sign is missing.
    """
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UsageError(f"--backend-option {text!r}: expected name=value, such as band=0.02.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


# Tidying: what may be written in several ways is kept in one.


def _unchanged(value: Any) -> Any:
    return value


def _labels(prefix: str) -> Callable[[tuple[str, ...]], tuple[str, ...]]:
    """Split at spaces and commas, strip the prefix, drop repetitions."""

    def tidy(entries: tuple[str, ...]) -> tuple[str, ...]:
        words = (word for entry in entries for word in re.split(r"[\s,]+", entry) if word)
        return tuple(dict.fromkeys(word.removeprefix(prefix) for word in words))

    return tidy


def _strip_sub(entries: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(entry.removeprefix("sub-") for entry in entries))


def _absolute_targets(entries: tuple[str, ...]) -> tuple[str, ...]:
    files = ("images", "card")
    return tuple(str(_as_path(e)) if _target_kind(e) in files else e for e in entries)


_TIDY: dict[str, Callable[[Any], Any]] = {
    "participant_label": _labels("sub-"),
    "session_label": _labels("ses-"),
    "fit_participants": _strip_sub,
    "target": _absolute_targets,
}


# Checks: each looks at one thing and says what to give instead.


def _check_levels(settings: Settings) -> None:
    _each_of("analysis level", settings.levels, LEVELS)
    if not settings.levels:
        raise UsageError("no analysis level given. Give participant, group, or both.")


def _check_stages(settings: Settings) -> None:
    _each_of("--stages", settings.stages, STAGES)
    for stage in settings.stages:
        if stage not in _stages_of(settings.levels):
            level = next(name for name, stages in LEVEL_STAGES.items() if stage in stages)
            raise UsageError(
                f"--stages {stage} belongs to the analysis level {level!r}, and the level "
                f"given is {' '.join(settings.levels)!r}. Add {level!r} or drop the stage."
            )
    if settings.model and "fit" in settings.stages:
        raise UsageError("--model brings a fitted model, --stages fit makes one. Drop one of them.")


def _stages_of(levels: Iterable[str]) -> tuple[str, ...]:
    """Stages of these analysis levels, in the order of execution."""
    asked = {stage for level in levels for stage in LEVEL_STAGES[level]}
    return tuple(stage for stage in STAGES if stage in asked)


def _check_choices(settings: Settings) -> None:
    _each_of("--modalities", settings.modalities, MODALITIES)
    _each_of("--site-from", (settings.site_from,), SITE_SOURCES)
    _each_of("--skull-strip", (settings.skull_strip,), SKULL_STRIP)
    _each_of("--traveling", (settings.traveling,), TRAVELING)
    _each_of("--moved-maps", (settings.moved_maps,), MOVED_MAPS)
    _each_of("--precision", (settings.precision,), PRECISION)
    _each_of("--detail", (settings.detail,), DETAIL)
    if settings.texture is not None:
        _each_of("--texture", (settings.texture,), TEXTURE)
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
    _each_of("--export", (settings.export,), EXPORTS)
    _each_of("--export-names", (settings.export_names,), EXPORT_NAMES)
    if "group" not in settings.levels:
        raise UsageError(
            f"--export {settings.export} belongs to the analysis level 'group', and the level "
            f"given is {' '.join(settings.levels)!r}. Add 'group', or export in a run of its own: "
            "group --stages export --export raw."
        )


def _check_only(settings: Settings) -> None:
    """What a run does instead of its stages: one thing at a time."""
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
    _within("--nprocs", settings.nprocs, 1, 100_000)
    _within("--omp-nthreads", settings.omp_nthreads, 1, 100_000)
    _within("--random-seed", settings.random_seed, 1, 2**31 - 1)
    _within("-v", settings.verbose, 0, 10)
    _within("--devices", settings.devices, 1, 1024)
    _within("--num-nodes", settings.num_nodes, 1, 100_000)
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
            "--mem-gb is GB, --mem-mb is MB)."
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


_CHECKS = (
    _check_levels,
    _check_stages,
    _check_choices,
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


def _each_of(what: str, given: tuple[str, ...], known: tuple[str, ...]) -> None:
    for word in given:
        if word not in known:
            raise UsageError(f"{what}: {word!r} is not known. {did_you_mean(word, known)}")


def _within(flag: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise UsageError(f"{flag} {value}: expected a whole number from {low} to {high}.")


def _target_kind(entry: str) -> str:
    if entry == SCANNER_FREE:
        return "scanner-free"
    if entry.lower().endswith(IMAGE_SUFFIXES):
        return "images"
    if entry.endswith(CARD_SUFFIX):
        return "card"
    if "/" in entry:
        raise UsageError(
            f"--target {entry}: looks like a path, but is neither an image (.nii, .nii.gz) nor a "
            f"site card ({CARD_SUFFIX}). A site label has no slash."
        )
    return "site"
