"""From the referee's tests to what a reader sees: a card per question, then the tables behind."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..evaluation.questions.anatomy import GUARDED
from ..evaluation.questions.anatomy_limits import AnatomyCheck
from ..evaluation.statistics.resampling import Statistics, Test
from ..evaluation.verdicts import MIN_SHOWN_R2, QUESTIONS, Verdict, compute_verdicts
from .html import number_words
from .intervals import Band, Mark, Strip, interval_chart, strip_chart

__all__ = ["Cell", "Table", "Card", "Evidence", "evidence_of"]

COMBAT = "combat_features"
VERDICTS = {"yes": "Yes", "partly": "Partly", "no": "No", "unknown": "Cannot be told"}
WORDS = {  # test -> what a reader is told beside the large number
    "site_f1_retrained": "how well the site is guessed (macro F1, 1 is always)",
    "distribution_distance": "distance between the sites' grey levels",
    "identification": "of the people are found again at another site",
    "source_identification": "of the images are most like their own source",
    "traveling_wilcoxon": "change of PSNR between scanners against unharmonized images",
    "age_r2": "of the variance of age is predicted across sites (R²)",
    "anatomy_flagged": "of the images are flagged by the anatomy guard",
}
PERCENT = ("identification", "source_identification", "anatomy_flagged")
MOST_EFFECTS = 3  # drawn on a card
ORDER = ("psnr", "ssim", "ms_ssim", "rmse", "mae")
TISSUES = ("brain", "CSF", "GM", "WM")


@dataclass(frozen=True)
class Cell:
    """Text of a table's cell; ``order`` is what it is sorted by, ``hint`` why there is no number.
    """

    text: str
    order: float | None = None
    hint: str = ""

    @property
    def numeric(self) -> bool:
        """Whether it is set to the right."""
        return self.order is not None or self.text == "n/a"


@dataclass(frozen=True)
class Table:
    """A table that can be sorted by a click; ``reason``: why it is empty, if it is."""

    title: str
    note: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Card:
    """One question's answer: verdict, the number it rests on, a sentence and a drawing (SVG)."""

    question: str
    title: str
    verdict: str
    verdict_words: str
    number: str
    number_words: str
    sentence: str
    chart: Any = None
    caption: str = ""


@dataclass(frozen=True)
class Evidence:
    """All of one modality: cards of the run's own method, every method's verdicts, tables."""

    cards: tuple[Card, ...] = ()
    methods: Table | None = None
    tables: Mapping[str, tuple[Table, ...]] = field(default_factory=dict)
    flagged: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True)
class _Source:
    """One modality's tests and verdicts; ``methods``: the run's own first."""

    table: Statistics
    methods: tuple[str, ...]
    verdicts: Mapping[str, Mapping[str, AnatomyCheck]]
    modality: str

    @property
    def combat(self) -> tuple[str, ...]:
        """ComBat's name where it has a number."""
        known = any(row.known for row in self.table.select(backend=COMBAT))
        return (COMBAT,) if known else ()

    def row(self, name: str, backend: str = "", **more: str) -> Test | None:
        """The first such row, or None."""
        rows = self.table.select(name=name, backend=backend, **more).rows
        return rows[0] if rows else None

    def known(self, name: str, backend: str = "", **more: str) -> Test | None:
        """The row where it has a number."""
        row = self.row(name, backend, **more)
        return row if row is not None and row.known else None


def evidence_of(statistics: Statistics, modality: str, methods: Sequence[str],
                verdicts: Mapping[str, Mapping[str, AnatomyCheck]]) -> Evidence:
    """What the tests say on the images of one modality; ``methods``: the run's own first."""
    source = _Source(statistics.select(modality=modality), tuple(methods), verdicts, modality)
    found = {name: compute_verdicts(statistics, name, modality) for name in methods}
    return Evidence(
        tuple(_card(source, answer) for answer in found[methods[0]]) if methods else (),
        _side_by_side(source, found),
        {"scanner": (_guesses(source), _grey_levels(source), _volumes(source), _paired(source)),
         "subject": (_pairs(source), _agreement(source), _identity(source)),
         "biology": (_age(source), _effects(source)),
         "anatomy": (_guard(source),)},
        tuple((scan, method, "; ".join(verdict.reasons))
              for method in methods for scan, verdict in sorted(verdicts.get(method, {}).items())
              if not verdict.ok))


def method_words(name: str) -> str:
    """A method as it is told: "before" for none, ComBat for the yardstick on features."""
    return {"": "before", COMBAT: "ComBat (features)"}.get(name, name)


# --- cards ----------------------------------------------------------------------------------------

def _card(source: _Source, answer: Verdict) -> Card:
    row = answer.basis
    own = row is not None and row.backend == source.methods[0]
    if own and row.name == "traveling_wilcoxon":  # what a linear map does not do already
        row = source.known(row.name, row.backend, reference="psnr | rescaled") or row
    number, words = _number(row) if own else ("", "")
    chart, caption = _CHARTS[answer.question](source, answer.basis)
    return Card(answer.question, QUESTIONS[answer.question], answer.answer,
                VERDICTS[answer.answer], number, words, answer.sentence, chart, caption)


def _number(row: Test) -> tuple[str, str]:
    """The number of a card in large, and what it is."""
    if not row.known:
        return "", ""
    if row.name in PERCENT:
        return f"{100 * row.effect:.0f} %", WORDS[row.name]
    if row.name == "traveling_wilcoxon":
        measure, other = row.reference.split(" | ")
        unit = f" {row.unit}" if row.unit not in ("1", "") else ""
        return (f"{row.effect:+.2g}{unit}",
                f"change of {measure.upper()} between scanners against {other} images")
    if row.name in EFFECTS:
        feature, covariate = row.reference.split(" | ")
        return (number_words(row.effect, 2),
                f"effect of {covariate} on the {feature} ({KINDS[row.name]})")
    unit = f" {row.unit}" if row.unit not in ("1", "") else ""
    return number_words(row.effect, 2) + unit, WORDS.get(row.name, row.reference)


def _marks(source: _Source, name: str, combat: bool = True, **more: str) -> list[Mark]:
    """A mark before, one for each method and, where it has one, ComBat's."""
    methods = ("", *source.methods, *(source.combat if combat else ()))
    marks = []
    for method in methods:
        row = source.row(name, method, **more)
        look = ("before" if not method else
                "after" if method == source.methods[0] else "other")
        if row is not None and row.known:
            marks.append(Mark(method_words(method), row.effect, row.low, row.high, look,
                              _value_words(row)))
    return marks


def _value_words(row: Test, digits: int = 3) -> str:
    """The number, or, for a prediction of age that has failed altogether, that it has."""
    if row.name == "age_r2" and row.effect < MIN_SHOWN_R2:
        return f"< {MIN_SHOWN_R2:.0f}"
    return number_words(row.effect, digits)


def _scanner_chart(source: _Source, basis: Test | None) -> tuple[Any, str]:
    own = source.methods[0]
    levels = basis is not None and basis.name == "distribution_distance"
    if source.known("site_f1_retrained", own) and not levels:
        chance = source.known("site_chance", own)
        band = None if chance is None else Band(chance.low, chance.high, "chance")
        return (interval_chart(_marks(source, "site_f1_retrained"), "Macro F1 of the guessed site",
                               band=band, ends=(0.0, 1.0)),
                "Macro F1 of the site guessed by a classifier trained on the same images of other "
                "people, with 95 % intervals. Inside the band it guesses no better than chance.")
    marks = _marks(source, "distribution_distance", tissue="brain")
    if not marks:
        return None, ""
    return (interval_chart(marks, "Distance between the sites' grey levels", zero=True),
            "Distance between the sites' grey levels as a share of the range R; 0 is none.")


def _person_chart(source: _Source, basis: Test | None) -> tuple[Any, str]:
    marks = [Mark(words, row.effect, row.low, row.high, look)
             for words, look, row in _pair_rows(source, "psnr") if row is not None and row.known]
    if marks:
        return (interval_chart(marks, "PSNR of one person's images from two scanners",
                               ends=_without_the_first(marks)),
                "Likeness (PSNR, dB) of one person's images from two scanners, mean over people; "
                "rescaled: what one linear map per scan reaches.")
    name = "identification" if source.known("identification") else "source_identification"
    marks = _marks(source, name, combat=False)
    if not marks:
        return None, ""
    return (interval_chart(marks, "Share of people identified", ends=(0.0, 1.0)),
            "Share of images that are most like their own person's.")


def _without_the_first(marks: Sequence[Mark]) -> tuple[float, float] | None:
    """Ends of an axis for all but the first mark, where that one is so far off that the others
    could not be told apart: unharmonized images in other units.
    """
    first, rest = marks[0].value, [m.value for m in marks[1:]]
    if not rest or min(rest) - first < 4 * (max(rest) - min(rest) + 1):
        return None
    bounds = [b for m in marks[1:] for b in (m.value, m.low, m.high)
              if b is not None and math.isfinite(b)]
    return min(bounds) - 1, max(bounds) + 1


def _biology_chart(source: _Source, basis: Test | None) -> tuple[Any, str]:
    marks = _marks(source, "age_r2")
    if len(marks) > 1 and (basis is None or basis.name == "age_r2"):
        lowest = min(0.0, *(mark.value for mark in marks))
        return (interval_chart(marks, "R2 of age predicted across sites", zero=True,
                               ends=(max(lowest, -1.0) - 0.05, 1.0)),
                "R² of age learned at one site and predicted for other people at other sites; "
                "below 0 it is worse than a guess at the mean age.")
    marks = []
    for reference in _shared_effects(source)[:MOST_EFFECTS]:
        for method, look in (("", "before"), (source.methods[0], "after")):
            row = _effect_row(source, method, reference)
            if row is not None:
                words = _feature(reference) if not method else "after"
                marks.append(Mark(words, row.effect, row.low, row.high, look))
    if not marks:
        return None, ""
    return (interval_chart(marks, "Effects of covariates before and after", zero=True),
            "Effects of covariates on tissue features, before (grey) and after.")


def _anatomy_chart(source: _Source, basis: Test | None) -> tuple[Any, str]:
    found = source.verdicts.get(source.methods[0], {})
    strips = []
    for name, (words, higher) in GUARDED.items():
        values = tuple(_share_of_limit(v, name, higher) for v in found.values()
                       if name in v.limits and name in v.values)
        if values:
            label = words.split(",")[0].split(" (")[0].removeprefix("change of ")
            strips.append(Strip(label, values))
    if not strips:
        return None, ""
    return (strip_chart(strips, "Every image against the limits of the anatomy guard",
                        "what rescans differ by"),
            "A dot per image: how far it moved, as a share of what two scans of one person on one "
            "scanner differ by. Beyond the line an image is flagged.")


def _share_of_limit(verdict: AnatomyCheck, name: str, higher: bool) -> tuple[float, bool]:
    """0 unmoved, 1 at the limit, and whether the limit is broken."""
    value, limit = verdict.values[name], verdict.limits[name]
    if not math.isfinite(value):
        return math.inf, True
    bad = value < limit if higher else value > limit
    ideal = 1.0 if higher else 0.0
    return ((value - ideal) / (limit - ideal) if limit != ideal else float(bad)), bad


_CHARTS: dict[str, Callable[[_Source, Test | None], tuple[Any, str]]] = {
    "scanner": _scanner_chart, "subject": _person_chart, "biology": _biology_chart,
    "anatomy": _anatomy_chart}


# --- tables ---------------------------------------------------------------------------------------

def _cell(row: Test | None, digits: int = 3) -> Cell:
    """Number and interval."""
    if row is None:
        return Cell("n/a")
    if not row.known:
        return Cell("n/a", hint=row.note)
    text = _value_words(row, digits)
    if row.low is not None and row.high is not None and math.isfinite(row.low) and text[0] != "<":
        text += f" ({number_words(row.low, 2)} to {number_words(row.high, 2)})"
    return Cell(text, row.effect, row.note)


def _p(value: float | None) -> Cell:
    if value is None or not math.isfinite(value):
        return Cell("n/a")
    return Cell("< 0.001" if value < 0.001 else f"{value:.3f}", value)


def _made(title: str, note: str, head: Sequence[str], rows: Iterable[Sequence[Cell]],
          reason: Test | None) -> Table:
    """The table without rows that have no number; without any, the reason instead."""
    kept = tuple(tuple(row) for row in rows if any(cell.order is not None for cell in row))
    words = "" if kept else (reason.note if reason is not None and reason.note else "not measured")
    return Table(title, note, tuple(head), kept, words)


def _methods(source: _Source, combat: bool = True) -> tuple[str, ...]:
    return ("", *source.methods, *(source.combat if combat else ()))


def _guesses(source: _Source) -> Table:
    rows = []
    for method in _methods(source):
        row, chance = source.row("site_f1_retrained", method), source.known("site_chance", method)
        band = Cell("n/a") if chance is None else Cell(
            f"{chance.low:.2f} to {chance.high:.2f}", chance.effect)
        rows.append((Cell(method_words(method)), _cell(row), _p(row.p if row else None), band,
                     _cell(source.row("site_f1_trained_on_raw", method)),
                     _cell(source.row("target_fidelity", method))))
    return _made(
        "Can the site still be guessed?",
        "Macro F1 of a classifier on first-order and texture features of each tissue, people it "
        "has not seen. Retrained: is any information on the site left (lower is better)? Trained "
        "on raw: would a reader of the old images be fooled? Taken for the target: share of other "
        "sites' images that this reader takes for the target's (higher is better).",
        ("Images", "Retrained F1 (95 %)", "p", "95 % of chance", "Trained on raw F1",
         "Taken for the target"), rows, source.row("site_f1_retrained"))


def _grey_levels(source: _Source) -> Table:
    rows = []
    for method in _methods(source, combat=False):
        for tissue in TISSUES:
            row = source.row("distribution_distance", method, tissue=tissue)
            if row is None:
                continue
            other = source.row("anderson_darling", method, tissue=tissue)
            rows.append((Cell(method_words(method)), Cell(_tissue(tissue)), _cell(row), _p(row.p),
                         _cell(other), _p(other.p if other else None)))
    return _made(
        "Grey levels between sites",
        "Mean Wasserstein distance between two sites in R; p from shuffles of people's sites. The "
        "Anderson-Darling test takes grey levels for independent draws and is given for comparison "
        "with the literature.",
        ("Images", "Where", "Distance, R (95 %)", "p", "Anderson-Darling", "its p"), rows,
        source.row("distribution_distance"))


def _tissue(name: str) -> str:
    return "whole brain" if name == "brain" else name


def _volumes(source: _Source) -> Table:
    rows = [(Cell(method_words(method)), Cell(tissue),
             *(_cell(source.row(name, method, tissue=tissue))
               for name in ("marginal_r2", "conditional_r2", "site_partial_eta_squared")))
            for tissue in ("GM", "WM", "CSF") for method in _methods(source)]
    return _made(
        "Tissue volumes",
        "Shares of the variance of a tissue's share of the brain, segmented anew in every image by "
        "a network that looks past contrast; tools that go by brightness see more of the site. "
        "Travelling people: marginal R² is the site's (low is good), conditional R² the site's and "
        "the person's (high is good). People seen at one site only: the site's share beyond age "
        "and sex, which holds true differences between people too.",
        ("Images", "Tissue", "Marginal R² (95 %)", "Conditional R² (95 %)",
         "Site beyond age and sex (95 %)"), rows, source.row("marginal_r2"))


def _paired(source: _Source) -> Table:
    rows = [(Cell(method_words(row.backend)), Cell(row.tissue), Cell(row.site),
             Cell(row.reference), _cell(row), _p(row.p_corrected), Cell(str(row.n), row.n))
            for row in source.table.select(name="paired_t") if row.known]
    return _made(
        "Tissue volumes of the same people, site by site",
        "Paired t tests against the reference site; p corrected after Benjamini and Hochberg.",
        ("Images", "Tissue", "Site", "Reference", "Mean difference (95 %)", "p corrected",
         "People"), rows, source.row("paired_t") or source.row("traveling_pair"))


def _pair_rows(source: _Source, measure: str) -> list[tuple[str, str, Test | None]]:
    """(words, look, row) of one measure of travelling pairs: before, rescaled, each method."""
    rows = [("before", "before", source.row("traveling_pair", "", reference=measure,
                                            stage="before")),
            ("rescaled", "other", source.row("traveling_pair", "", reference=measure,
                                             stage="rescaled"))]
    return rows + [(name, "after" if name == source.methods[0] else "other",
                    source.row("traveling_pair", name, reference=measure))
                   for name in source.methods]


def _pairs(source: _Source) -> Table:
    rows = []
    for measure in ORDER:
        for words, look, row in _pair_rows(source, measure):
            name = row.backend if row is not None else ""
            against = [source.row("traveling_wilcoxon", name, reference=f"{measure} | {other}")
                       if name else None for other in ("unharmonized", "rescaled")]
            rows.append((Cell(measure.upper().replace("_", "-")), Cell(words), _cell(row),
                         *(c for test in against for c in
                           (_cell(test), _p(test.p_corrected if test else None)))))
    return _made(
        "The same person on two scanners",
        "Mean over travelling people. PSNR in dB, RMSE and MAE in R. A method should not fall "
        "below unharmonized images, nor below images that were only rescaled (one linear map per "
        "scan). Median change over people, Wilcoxon signed-rank test, p corrected after Holm.",
        ("Measure", "Images", "Mean (95 %)", "Against unharmonized", "p", "Against rescaled", "p"),
        rows, source.row("traveling_pair"))


def _agreement(source: _Source) -> Table:
    features = dict.fromkeys(row.reference for row in source.table.select(name="icc31"))
    rows = [(Cell(feature), Cell(method_words(method)),
             *(_cell(source.row(name, method, reference=feature))
               for name in ("icc31", "icc21", "within_subject_cov")))
            for feature in features for method in _methods(source)]
    return _made(
        "Does a person's number follow him or her?",
        "Over sites: ICC(3,1) forgives offsets between sites, ICC(2,1) does not (higher is "
        "better); variation within a person in percent (lower is better).",
        ("Feature", "Images", "ICC(3,1) (95 %)", "ICC(2,1) (95 %)", "Within person, % (95 %)"),
        rows, source.row("icc31") or source.row("traveling_pair"))


def _identity(source: _Source) -> Table:
    names = ("identification", "identifiability", "source_identification",
             "source_identifiability")
    rows = [(Cell(method_words(method)), *(_cell(source.row(name, method)) for name in names))
            for method in _methods(source, combat=False)]
    return _made(
        "Can people be told apart?",
        "Share of people whose image is most like their own at another site, and by how much; "
        "share of harmonized images most like their own source among their site's, and by how "
        "much.", ("Images", "Found at another site", "by", "Found among sources", "by"), rows,
        source.row("source_identification", source.methods[0] if source.methods else ""))


def _age(source: _Source) -> Table:
    rows = []
    for method in _methods(source):
        any_slope = source.row("age_interaction_any", method)
        rows.append((Cell(method_words(method)), *(
            _cell(source.row(name, method)) for name in ("age_r2", "age_mae", "age_rmse")),
            _cell(any_slope), _p(any_slope.p if any_slope else None)))
    return _made(
        "Age",
        "R² and mean absolute error (years) of age learned at one site and predicted for other "
        "people at other sites. Residual error (years) of age on grey matter with a slope for each "
        "site, how much those slopes explain, and their p: a slope that depends on the scanner is "
        "a scanner effect on biology.",
        ("Images", "R² (95 %)", "Error, years (95 %)", "Residual, years", "Slopes by site", "p"),
        rows, source.row("age_r2"))


KINDS = {"cohens_d": "Cohen's d", "standardized_beta": "standardised slope",
         "partial_eta_squared": "share of variance"}
EFFECTS = {"cohens_d": "d", "standardized_beta": "β", "partial_eta_squared": "η²"}


def _effect_row(source: _Source, method: str, reference: str) -> Test | None:
    return next((row for name in EFFECTS
                 if (row := source.known(name, method, reference=reference))), None)


def _shared_effects(source: _Source) -> list[str]:
    """Effects known before, those that exclude zero first, then the strongest."""
    rows = [row for name in EFFECTS for row in source.table.select(name=name, backend="")
            if row.known]
    rows.sort(key=lambda r: (not (r.low is not None and r.low * r.high > 0), -abs(r.effect)))
    return [row.reference for row in rows]


def _feature(reference: str) -> str:
    feature, covariate = reference.split(" | ")
    return f"{feature.replace(' ratio', '')}, {covariate}"


def _effects(source: _Source) -> Table:
    rows = []
    for reference in _shared_effects(source):
        for method in _methods(source):
            row = _effect_row(source, method, reference)
            kind = EFFECTS.get(row.name, "") if row is not None else ""
            feature, covariate = reference.split(" | ")
            rows.append((Cell(feature), Cell(covariate), Cell(method_words(method)), Cell(kind),
                         _cell(row), _p(row.p if row else None),
                         Cell(str(row.n), row.n) if row else Cell("n/a")))
    return _made(
        "Covariates",
        "Adjusted for site, age and sex. d: difference of two groups in standard deviations; β: "
        "standardised slope; η²: share of variance. p only where everybody has one scan.",
        ("Feature", "Covariate", "Images", "Kind", "Effect (95 %)", "p", "People"), rows,
        source.row("effect_size"))


def _guard(source: _Source) -> Table:
    rows = []
    for name, (words, higher) in GUARDED.items():
        limit = source.row("anatomy_limit", "", reference=name)
        for method in source.methods:
            found = [v for v in source.verdicts.get(method, {}).values()
                     if name in v.limits and name in v.values]
            broken = sum(_share_of_limit(v, name, higher)[1] for v in found)
            rows.append((Cell(words), Cell(method), Cell("at least" if higher else "at most"),
                         _cell(limit), _cell(source.row("anatomy_measure", method,
                                                        reference=name)),
                         Cell(f"{broken} of {len(found)}", broken) if found else Cell("n/a")))
    limit = source.row("anatomy_limit")
    return _made(
        "The anatomy guard",
        f"Limits from {limit.method if limit is not None else 'the cohort itself'}: an image may "
        "move by what those differ by. Source against harmonized image, contrast explained away.",
        ("Measure", "Method", "Limit is", "Limit", "Mean (95 %)", "Images beyond it"), rows,
        source.row("anatomy_flagged", source.methods[0] if source.methods else ""))


def _side_by_side(source: _Source, found: Mapping[str, Sequence[Verdict]]) -> Table:
    """Every method on one row, and what was there before and ComBat's numbers beside them."""
    rows = []
    for method in _methods(source):
        verdicts = [Cell(VERDICTS[a.answer]) for a in found.get(method, ())] or [Cell("")] * 4
        psnr = next(row for words, _, row in _pair_rows(source, "psnr") if words == (
            method or "before")) if method != COMBAT else None
        rows.append((Cell(method_words(method)), *verdicts,
                     _short(source.row("site_f1_retrained", method)),
                     _short(source.row("distribution_distance", method, tissue="brain")),
                     _short(psnr), _short(source.row("age_r2", method)),
                     _short(source.row("anatomy_flagged", method))))
    return _made(
        "Methods side by side",
        "On the same scans. ComBat is fitted on features, not images, and on other people than it "
        "is judged on: a yardstick for what statistics can do.",
        ("Images", "Scanner gone?", "Person there?", "Biology there?", "Anatomy stayed?",
         "Site F1", "Distance, R", "PSNR, dB", "Age R²", "Flagged"), rows, None)


def _short(row: Test | None) -> Cell:
    """The number alone."""
    if row is None or not row.known:
        return Cell("n/a", hint=row.note if row is not None else "")
    return Cell(_value_words(row, 2), row.effect)
