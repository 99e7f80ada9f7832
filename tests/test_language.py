"""Tests that retired names and phrases stay out of code, help texts and documentation.

docs/glossary.md gives the terms of this project and where they come from. A name in `RETIRED_NAMES`
may not be used in Python code at all, a name in `RETIRED_DEFINITIONS` may not be given to a module,
class, function or module-level constant, and a pattern in `RETIRED_PHRASES` may not occur in
docstrings, comments, strings (thus help texts and messages) or Markdown, one in
`RETIRED_PHRASES_OF_CODE` not in Python code. `BRITISH_SPELLINGS` are searched in names too.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GLOSSARY = ROOT / "docs" / "glossary.md"
PYTHON = ("harmonizer/**/*.py", "pipelines/**/*.py", "benchmarks/*.py", "tests/**/*.py",
          "tools/*.py", "run.py")
MARKDOWN = ("README.md", "docs/**/*.md", "harmonizer/**/*.md")
# This file names what is retired. docs/research holds records of their time.
EXEMPT = ("tests/test_language.py", "docs/research/", "docs/glossary.md")

RETIRED_NAMES = {
    "Advice": "PriorSettings",
    "Answer": "SiteClassification, Verdict",
    "Borrowed": "FallbackSegmentation",
    "Canvas": "BoundingBox",
    "ENOUGH": "a noun with a unit",
    "FEW": "a noun with a unit",
    "Game": "TrainingTask",
    "Guess": "SiteClassification",
    "KeptSteps": "SamplerCheckpoint",
    "Known": "ScanContext",
    "LEAST": "MIN_ and a noun with a unit",
    "LEAST_SUPPORT": "MIN_CONTRAST_TO_NOISE",
    "LARGEST": "MAX_ and a noun with a unit",
    "LARGE": "MAX_ and a noun with a unit",
    "LOWEST": "MIN_ and a noun with a unit",
    "Pace": "TrainingSchedule",
    "Parts": "Denoised",
    "Player": "OptimizerGroup",
    "Ranks": "DistributedContext",
    "Ruling": "EvaluationResult",
    "SHOWN": "a noun with a unit",
    "STRANGE": "a noun with a unit",
    "Shares": "TissueProbabilities",
    "Shown": "NetworkInput",
    "Trial": "EvaluationInput",
    "absolute": "l1",
    "apart": "adversarial_loss",
    "belongs": "label_loss",
    "borrow": "transfer_segmentation",
    "borrowed": "fallback_segmentation",
    "carrier": "contrast_transfer",
    "contrast_between": "contrast_to_noise",
    "doubt": "low_confidence_warning",
    "explained": "site_effect_maps",
    "explained_figures": "site_effect_figures",
    "freed": "shrink",
    "goal": "training_target",
    "guide": "fit_contrast_transfer",
    "judged": "score",
    "left_out": "residual",
    "noised": "add_noise",
    "part_start": "patch_baseline",
    "parts_of": "denoiser_of",
    "people": "subjects",
    "person": "subject",
    "plays_at": "is_active_at",
    "prints": "fingerprints",
    "realness": "adversarial_loss",
    "referee": "evaluate",
    "roams": "has_traveling_subjects",
    "said": "model_output",
    "scan_share": "scan_variance_fraction",
    "share_": "residual_weight_",
    "share_sites": "cross_site_fraction",
    "shares": "probabilities",
    "shares_of": "stack_probabilities",
    "spread": "std, uncertainty_map",
    "spread_": "uncertainty_map_",
    "spread_ratio": "std_ratio",
    "spreads": "stds",
    "told": "conditioning",
    "trust": "image_weight",
    "untold": "label_confusion_loss",
}
RETIRED_DEFINITIONS = {
    "CLEAN": "T_CLEAN",
    "Case": "ValidationCase",
    "fold": "pixel_unshuffle",
    "held_out": "validation",
    "kept": "cache",
    "miss": "error",
    "moved": "anatomy_change",
    "null": "baseline",
    "put": "paste",
    "share": "probability",
    "start": "baseline",
    "support": "contrast_to_noise",
    "take": "crop",
    "times": "timesteps",
    "unfold": "pixel_shuffle",
}
RETIRED_PHRASES = {
    r"\b(?:the|this|each|every|own) (?:house|room)s?\b": "architecture, package",
    r"\bfront door\b|\bat the door\b|\bdoor check\b": "interface, check of the input",
    r"\bfirst guess(?:es)?\b": "baseline",
    r"\breferees?\b": "evaluation",
    r"\bhis or her\b": "the subject's",
    r"\bpeople\b|\bpersons?\b": "subjects",
    r"\btravell(?:ers?|ing)\b|\btravelers?\b": "traveling subject",
    r"\bin doubt\b|\bdoubtful\b": "low confidence",
    r"\b(?:bears?|bore|borne) (?:\w+ ){0,4}out\b": "agrees with; contrast-to-noise ratio",
    r"\b(?:is|are|was) (?:heard|told|asked)\b": "name the data flow",
    r"\bon whose word\b|\bas much as\b.*\bworth\b": "say it plainly",
    r"\bby its own word\b|\bsay(?:s)? so\b": "state the fact",
    r"\bno scanner made\b|\bnobody's\b": "synthesized",
    r"\b(?:its|their|the|of) shares\b|\bshares of (?:CSF|GM|WM|tissue|the tissues?)\b":
        "probabilities",
    r"(?<!point )(?<!points )\bspreads?\b(?! (?:over|across|to|in|function)\b)":
        "standard deviation",
}
RETIRED_PHRASES_OF_CODE = {
    r"\bnobody\b": "no subject",
    r"\bside by side\b": "in parallel, compared",
}
BRITISH_SPELLINGS = {
    r"\bgrey\b": "gray",
    r"\bcolour\w*": "color",
    r"\bcentr(?:e|es|ed)\b": "center",
    r"\b(?:milli)?litres?\b|\b(?:milli|centi|kilo)?metres\b": "liter, meter",
    r"\bneighbour\w*": "neighbor",
    r"\b(?:normal|synthes|optim|harmon|recogn|standard|initial|quant|visual|general)is"
    r"(?:e|es|ed|ing|ation|ations|er|ers)\b": "-ize, -ization",
    r"\bartefacts?\b": "artifact",
    r"\bbehaviours?\b": "behavior",
    r"\bfavour\w*": "favor",
    r"\blicence\b": "license",
    r"\btumours?\b": "tumor",
    r"\b(?:model|label|cancel)l(?:ed|ing)\b": "one l",
}


def retired_names(path: str, text: str) -> list[str]:
    """Find retired names and spellings among the identifiers of a Python file."""
    tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    found = [f"{path}:{token.start[0]} {token.string}: use {RETIRED_NAMES[token.string]}"
             for token in tokens if token.type == tokenize.NAME and token.string in RETIRED_NAMES]
    definitions = [(1, Path(path).stem)]
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            definitions.append((node.lineno, node.name.lstrip("_")))
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        definitions += [(node.lineno, t.id) for t in targets if isinstance(t, ast.Name)]
    found += [f"{path}:{line} {name}: use {RETIRED_DEFINITIONS[name]}"
              for line, name in definitions if name in RETIRED_DEFINITIONS]
    names = {(t.start[0], t.string) for t in tokens if t.type == tokenize.NAME}
    return found + [f"{path}:{line} {name}: use {use}"
                    for line, name in sorted(names) for pattern, use in BRITISH_SPELLINGS.items()
                    if re.search(pattern, name.replace("_", " "), re.IGNORECASE)]


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of all comments and strings of a Python file, f-strings included."""
    strings = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", -1)}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in strings:
            yield token.start[0], token.string


def retired_phrases(path: str, text: str) -> list[str]:
    """Find retired phrases in the prose of a Python file, or in a Markdown page."""
    is_code = path.endswith(".py")
    parts = prose(text) if is_code else [(1, text)]
    retired = RETIRED_PHRASES | BRITISH_SPELLINGS | (RETIRED_PHRASES_OF_CODE if is_code else {})
    found = []
    for line, part in parts:
        for pattern, use in retired.items():
            for match in re.finditer(pattern, part, re.IGNORECASE):
                at = line + part.count("\n", 0, match.start())
                found.append(f"{path}:{at} {match.group(0)!r}: use {use}")
    return found


def violations(path: str, text: str) -> list[str]:
    """Find all retired names and phrases in one file."""
    names = retired_names(path, text) if path.endswith(".py") else []
    return names + retired_phrases(path, text)


@lru_cache(maxsize=1)
def all_violations() -> dict[str, list[str]]:
    """Return the violations of each file that has some."""
    files = sorted({f for pattern in (*PYTHON, *MARKDOWN) for f in ROOT.glob(pattern)})
    found = {}
    for file in files:
        path = file.relative_to(ROOT).as_posix()
        if not path.startswith(EXEMPT):
            found[path] = violations(path, file.read_text(encoding="utf-8"))
    assert len(found) > 100, "the code was not found"
    return {path: lines for path, lines in found.items() if lines}


def test_retired_words_do_not_come_back() -> None:
    found = [line for lines in all_violations().values() for line in lines]
    assert not found, "see docs/glossary.md\n" + "\n".join(found)


@pytest.mark.parametrize(("path", "text"), [
    ("harmonizer/a.py", "class Game: ..."),
    ("harmonizer/a.py", "def f(shares): ..."),
    ("harmonizer/a.py", "x.spread = 1"),
    ("harmonizer/a.py", "LEAST = 3"),
    ("harmonizer/a.py", "def _fold(x): ..."),
    ("harmonizer/a.py", "def start(x): ..."),
    ("harmonizer/a.py", "mask_centre = 0"),
    ("harmonizer/held_out.py", '"""A module."""'),
    ("harmonizer/a.py", '"""Maps of a person."""'),
    ("harmonizer/a.py", "x = 1  # grey matter"),
    ("harmonizer/a.py", "x = 1  # nobody reads it"),
    ("pipelines/cli.py", 'parser.add_argument("--x", help="of all people")'),
    ("harmonizer/a.py", 'raise InputError(f"{path}: the centre of {x} is missing.")'),
    ("docs/a.md", "The tissues are in doubt."),
    ("docs/a.md", "The image bears its own tissues out."),
    ("docs/a.md", "the network is heard"),
])
def test_retired_words_are_found(path: str, text: str) -> None:
    assert violations(path, text)


@pytest.mark.parametrize(("path", "text"), [
    ("harmonizer/a.py", "for fold in folds:\n    start, support = fold\n"),
    ("harmonizer/a.py", "slice(start, stop)"),
    ("harmonizer/a.py", "GameBoard = shared = personal = 1"),
    ("harmonizer/a.py", '"""Subjects share a scanner; gray matter is segmented at the center."""'),
    ("docs/a.md", "Nodes spread over several jobs. Colors are normalized."),
])
def test_other_words_are_not_reported(path: str, text: str) -> None:
    assert not violations(path, text)


def glossary_rows() -> list[list[str]]:
    lines = [line for line in GLOSSARY.read_text(encoding="utf-8").splitlines()
             if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_glossary_gives_each_term_once_with_its_meaning_and_source() -> None:
    rows = [row for row in glossary_rows() if not set("".join(row)) <= set("- ")]
    terms = [row[0] for row in rows if row[0] != "term"]
    assert len(terms) > 40
    assert len(set(terms)) == len(terms), "a term has two meanings"
    assert all(len(row) == 3 and all(row) for row in rows), "a cell is empty"


def test_glossary_uses_no_retired_word() -> None:
    assert not retired_phrases("docs/glossary.md", GLOSSARY.read_text(encoding="utf-8"))
    names = {name for row in glossary_rows() for name in re.findall(r"`(\w+)`", row[0])}
    assert not names & {*RETIRED_NAMES, *RETIRED_DEFINITIONS}
