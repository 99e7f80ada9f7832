"""Verdict cards of the group report: one per question, with number, sentence and chart."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..evaluation.questions.anatomy import GUARDED
from ..evaluation.statistics.equivalence import INTENSITY_MARGIN
from ..evaluation.statistics.resampling import Test, is_known
from ..evaluation.verdicts import QUESTIONS, Verdict
from .html import number_words
from .intervals import Band, Mark, Strip, interval_chart, strip_chart
from .results import (
    RESCALED,
    ModalityResults,
    effect_row,
    limit_fraction,
    method_words,
    pair_rows,
    strongest_effects,
    value_words,
)

__all__ = ["Card", "verdict_card"]

NUMBER_CAPTIONS = {  # test -> text beside the large number of a card
    "site_f1_excess": "macro F1 of the predicted site above chance (0: no site effect)",
    "distribution_excess": "distance between sites over that between subjects of a site, above "
    "chance",
    "features_within_margin": "of the features have a negligible site effect",
    "source_identification": "of the images are most similar to their own source",
    "identification_change": "change of the subjects identified at another site",
    "own_to_others_change": "change of the distance to the own image relative to others",
    "pair_error_change": "change of the error between scanners against linear rescaling alone",
    "age_r2_loss": "change of the explained variance of age (R²)",
    "effect_loss": "change of the effect of",
    "anatomy_flagged": "of the images are flagged by the anatomy guard",
}
PERCENT_TESTS = ("source_identification", "anatomy_flagged", "features_within_margin")
CHANGE_SIGNS = {"pair_error_change": 1, "identification_change": 1, "age_r2_loss": -1,
                "effect_loss": -1}  # shown as a signed change in percent
MAX_EFFECTS_ON_CARD = 3


@dataclass(frozen=True)
class Card:
    """Card with the answer to one question.

    Attributes
    ----------
    question, title : str
        Key and wording of the question.
    verdict, verdict_words : str
        Answer as a key and in words.
    number, number_words : str
        Number on which the verdict is based, and its description.
    sentence : str
        Explanation.
    chart : markupsafe.Markup, optional
        SVG chart.
    caption : str
        Text below the chart.
    """

    question: str
    title: str
    verdict: str
    verdict_words: str
    number: str
    number_words: str
    sentence: str
    chart: Any = None
    caption: str = ""


def verdict_card(results: ModalityResults, answer: Verdict) -> Card:
    """Make the card of one verdict."""
    row = answer.basis
    own = row is not None and row.backend == results.methods[0]
    number, words = _number(row) if row is not None and own else ("", "")
    chart, caption = _CHARTS[answer.question](results, answer.basis)
    return Card(answer.question, QUESTIONS[answer.question], answer.answer, answer.words, number,
                words, answer.sentence, chart, caption)


def _number(row: Test) -> tuple[str, str]:
    """Return the large number of a card and its description."""
    if not is_known(row):
        return "", ""
    if row.name in PERCENT_TESTS:
        return f"{100 * row.effect:.0f} %", NUMBER_CAPTIONS[row.name]
    if row.name in CHANGE_SIGNS:
        words = NUMBER_CAPTIONS[row.name]
        if row.name == "effect_loss":
            feature, covariate = row.reference.split(" | ")
            words += f" {covariate} on the {feature}"
        return f"{100 * CHANGE_SIGNS[row.name] * row.effect:+.0f} %", words
    unit = f" {row.unit}" if row.unit not in ("1", "") else ""
    return number_words(row.effect, 2) + unit, NUMBER_CAPTIONS.get(row.name, row.reference)


def _marks(results: ModalityResults, name: str, combat: bool = True, **more: str) -> list[Mark]:
    """Return a mark for images before and only rescaled, each method and, if known, ComBat."""
    marks = []
    for method in results.images(combat):
        row = results.row(name, method, **more)
        look = ("before" if not method else
                "after" if method == results.methods[0] else "other")
        if is_known(row):
            marks.append(Mark(method_words(method), row.effect, row.low, row.high, look,
                              value_words(row)))
    return marks


def _scanner_chart(results: ModalityResults, basis: Test | None) -> tuple[Any, str]:
    own = results.methods[0]
    levels = basis is not None and basis.name == "distribution_excess"
    if results.known("site_f1_retrained", own) and not levels:
        chance = results.known("site_chance", own)
        band = None
        if chance is not None and chance.low is not None and chance.high is not None:
            band = Band(chance.low, chance.high, "chance")
        return (interval_chart(_marks(results, "site_f1_retrained"),
                               "Macro F1 of the predicted site", band=band, ends=(0.0, 1.0)),
                "Macro F1 of the site predicted by a classifier that was trained on other "
                "subjects, with 95 % intervals. Band: 95 % of predictions by chance.")
    marks = _marks(results, "distribution_excess", tissue="brain")
    if not marks:
        return None, ""
    band = Band(-INTENSITY_MARGIN, INTENSITY_MARGIN, "margin")
    ends = [value for mark in marks[1:] or marks for value in (mark.value, mark.low, mark.high)
            if value is not None and math.isfinite(value)]
    low, high = min(-INTENSITY_MARGIN, *ends), max(INTENSITY_MARGIN, *ends)
    pad = 0.05 * (high - low)
    return (interval_chart(marks, "Distance between the sites' intensity distributions", zero=True,
                           band=band, ends=(low - pad, high + pad)),
            "Distance between the sites' intensity distributions beyond chance, in units of the "
            "distance between subjects of a site. A mark at the edge lies outside.")


def _subject_chart(results: ModalityResults, basis: Test | None) -> tuple[Any, str]:
    marks = [Mark(words, row.effect, row.low, row.high, look)
             for words, look, row in pair_rows(results, "psnr") if is_known(row)]
    if marks:
        return (interval_chart(marks, "PSNR between images of one subject from two scanners",
                               ends=_axis_without_first(marks)),
                "PSNR (dB) between images of one subject from two scanners, mean over subjects. "
                "Rescaled: one linear map per scan.")
    name = "identification" if results.known("identification") else "source_identification"
    marks = _marks(results, name, combat=False)
    if not marks:
        return None, ""
    return (interval_chart(marks, "Fraction of subjects identified", ends=(0.0, 1.0)),
            "Fraction of images that are most similar to an image of the same subject.")


def _axis_without_first(marks: Sequence[Mark]) -> tuple[float, float] | None:
    """Return the ends of an axis for all but the first mark, if that one is an outlier.

    Unharmonized images may be in other units. Their value would then hide the differences between
    the others.
    """
    first, rest = marks[0].value, [m.value for m in marks[1:]]
    if not rest or min(rest) - first < 4 * (max(rest) - min(rest) + 1):
        return None
    bounds = [b for m in marks[1:] for b in (m.value, m.low, m.high)
              if b is not None and math.isfinite(b)]
    return min(bounds) - 1, max(bounds) + 1


def _biology_chart(results: ModalityResults, basis: Test | None) -> tuple[Any, str]:
    marks = _marks(results, "age_r2")
    if len(marks) > 1 and (basis is None or basis.name.startswith("age_r2")):
        lowest = min(0.0, *(mark.value for mark in marks))
        return (interval_chart(marks, "R2 of age predicted across sites", zero=True,
                               ends=(max(lowest, -1.0) - 0.05, 1.0)),
                "R² of age, learned at one site and predicted for other subjects at other sites. "
                "Below 0 it is worse than predicting the mean age.")
    marks = []
    for reference in strongest_effects(results)[:MAX_EFFECTS_ON_CARD]:
        for method, look in (("", "before"), (RESCALED, "other"), (results.methods[0], "after")):
            row = effect_row(results, method, reference)
            if row is not None:
                words = {"": _feature(reference), RESCALED: "only rescaled"}.get(method, "after")
                marks.append(Mark(words, row.effect, row.low, row.high, look))
    if not marks:
        return None, ""
    return (interval_chart(marks, "Effects of covariates before and after", zero=True),
            "Effects of covariates on tissue features: before (gray), only rescaled, and after.")


def _feature(reference: str) -> str:
    feature, covariate = reference.split(" | ")
    return f"{feature.replace(' ratio', '')}, {covariate}"


def _anatomy_chart(results: ModalityResults, basis: Test | None) -> tuple[Any, str]:
    found = results.verdicts.get(results.methods[0], {})
    strips = []
    for name, (words, higher) in GUARDED.items():
        values = tuple(limit_fraction(v, name, higher) for v in found.values()
                       if name in v.limits and name in v.values)
        if values:
            label = words.split(",")[0].split(" (")[0].removeprefix("change of ")
            strips.append(Strip(label, values))
    if not strips:
        return None, ""
    return (strip_chart(strips, "Every image against the limits of the anatomy guard",
                        "limit from rescans"),
            "One dot per image: its change relative to the difference between two scans of one "
            "subject on one scanner. Images beyond the line are flagged. Before and only rescaled, "
            "every image stands at the left end.")


_CHARTS: dict[str, Callable[[ModalityResults, Test | None], tuple[Any, str]]] = {
    "scanner": _scanner_chart, "subject": _subject_chart, "biology": _biology_chart,
    "anatomy": _anatomy_chart}
