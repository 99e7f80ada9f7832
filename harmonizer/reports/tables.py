"""Tables of the group report with test results, by question."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..evaluation.questions.anatomy import GUARDED
from ..evaluation.questions.traveling import PAIR_MEASURES
from ..evaluation.statistics.resampling import Test, is_known
from ..evaluation.verdicts import Verdict
from .html import number_words
from .results import (
    COMBAT_WORDS,
    EFFECT_SYMBOLS,
    ModalityResults,
    effect_row,
    limit_fraction,
    method_words,
    pair_rows,
    strongest_effects,
    value_words,
)

__all__ = ["Cell", "Table", "compare_methods", "interval_cell", "make_table", "p_cell",
           "question_tables"]

REGIONS_IN_TABLE = ("brain", "CSF", "GM", "WM")


@dataclass(frozen=True)
class Cell:
    """Cell of a table.

    Attributes
    ----------
    text : str
        Text.
    order : float, optional
        Value by which rows are sorted.
    hint : str
        Reason for a missing number, or a note.
    """

    text: str
    order: float | None = None
    hint: str = ""

    @property
    def numeric(self) -> bool:
        """Whether the text is aligned to the right."""
        return self.order is not None or self.text == "n/a"


@dataclass(frozen=True)
class Table:
    """Table that can be sorted by a click.

    Attributes
    ----------
    title, note : str
        Heading and explanation.
    head : tuple of str
        Column names.
    rows : tuple of tuple of Cell
        Cells.
    reason : str
        Why the table is empty, if it is.
    """

    title: str
    note: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...] = ()
    reason: str = ""


def interval_cell(row: Test | None, digits: int = 3) -> Cell:
    """Return a cell with number and interval."""
    if row is None:
        return Cell("n/a")
    if not is_known(row):
        return Cell("n/a", hint=row.note)
    text = value_words(row, digits)
    if row.low is not None and row.high is not None and math.isfinite(row.low) and text[0] != "<":
        text += f" ({number_words(row.low, 2)} to {number_words(row.high, 2)})"
    return Cell(text, row.effect, row.note)


def _number_cell(row: Test | None) -> Cell:
    """Return a cell with the number only."""
    if not is_known(row):
        return Cell("n/a", hint=row.note if row is not None else "")
    return Cell(value_words(row, 2), row.effect)


def p_cell(value: float | None) -> Cell:
    """Return a cell with a p value."""
    if value is None or not math.isfinite(value):
        return Cell("n/a")
    return Cell("< 0.001" if value < 0.001 else f"{value:.3f}", value)


def make_table(title: str, note: str, head: Sequence[str], rows: Iterable[Sequence[Cell]],
          reason: Test | None) -> Table:
    """Make a table of the rows that have a number; without any, it states the reason."""
    with_numbers = tuple(tuple(row) for row in rows if any(cell.order is not None for cell in row))
    if with_numbers:
        return Table(title, note, tuple(head), with_numbers)
    words = reason.note if reason is not None and reason.note else "not measured"
    return Table(title, note, tuple(head), (), words)


def _site_table(results: ModalityResults) -> Table:
    rows = []
    for method in results.images():
        row, chance = results.row("site_f1_retrained", method), results.known("site_chance", method)
        band = Cell("n/a") if chance is None else Cell(
            f"{chance.low:.2f} to {chance.high:.2f}", chance.effect)
        rows.append((Cell(method_words(method)), interval_cell(row),
                     p_cell(row.p if row else None), band,
                     interval_cell(results.row("site_f1_trained_on_raw", method)),
                     interval_cell(results.row("target_fidelity", method))))
    return make_table(
        "Site classification",
        "Macro F1 of a classifier of the site, from first-order and texture features of each "
        "tissue, on subjects that it was not trained on. Retrained: trained on the images of the "
        "row; lower means less information on the site. Trained on raw: trained on unharmonized "
        "images. Classified as target: fraction of images of other sites that the latter assigns "
        "to the target; higher is better.",
        ("Images", "Retrained F1 (95 %)", "p", "95 % of chance", "Trained on raw F1",
         "Classified as target"), rows, results.row("site_f1_retrained"))


def _intensity_table(results: ModalityResults) -> Table:
    rows = []
    for method in results.images(combat=False):
        for tissue in REGIONS_IN_TABLE:
            row = results.row("distribution_distance", method, tissue=tissue)
            if row is None:
                continue
            other = results.row("anderson_darling", method, tissue=tissue)
            rows.append((Cell(method_words(method)), Cell(_tissue(tissue)), interval_cell(row),
                         p_cell(row.p), interval_cell(other), p_cell(other.p if other else None)))
    return make_table(
        "Intensity distributions of sites",
        "Mean Wasserstein distance between two sites in R; p from permutations of the subjects' "
        "sites. The Anderson-Darling test assumes independent voxels and is given for comparison "
        "with the literature.",
        ("Images", "Where", "Distance, R (95 %)", "p", "Anderson-Darling",
         "p (Anderson-Darling)"), rows, results.row("distribution_distance"))


def _tissue(name: str) -> str:
    return "whole brain" if name == "brain" else name


def _volumes(results: ModalityResults) -> Table:
    rows = [(Cell(method_words(method)), Cell(tissue),
             *(interval_cell(results.row(name, method, tissue=tissue))
               for name in ("marginal_r2", "conditional_r2", "site_partial_eta_squared")))
            for tissue in ("GM", "WM", "CSF") for method in results.images()]
    return make_table(
        "Tissue volumes",
        "Explained variance of each tissue's fraction of the brain volume. Every image is "
        "segmented by a network trained on all contrasts; intensity-based tools show larger site "
        "effects. Traveling subjects: marginal R² is the variance explained by site (low is "
        "good), conditional R² by site and subject (high is good). Other subjects: variance "
        "explained by site after age and sex, which includes true differences between subjects.",
        ("Images", "Tissue", "Marginal R² (95 %)", "Conditional R² (95 %)",
         "Site after age and sex (95 %)"), rows, results.row("marginal_r2"))


def _paired(results: ModalityResults) -> Table:
    rows = [(Cell(method_words(row.backend)), Cell(row.tissue), Cell(row.site),
             Cell(row.reference), interval_cell(row), p_cell(row.p_corrected),
             Cell(str(row.n), row.n))
            for row in results.table.select(name="paired_t") if row.known]
    return make_table(
        "Tissue volumes of traveling subjects by site",
        "Paired t tests against the reference site; p corrected by Benjamini-Hochberg.",
        ("Images", "Tissue", "Site", "Reference", "Mean difference (95 %)", "p corrected",
         "Subjects"), rows, results.row("paired_t") or results.row("traveling_pair"))


def _pairs(results: ModalityResults) -> Table:
    rows = []
    for measure in PAIR_MEASURES:
        for words, _, row in pair_rows(results, measure):
            name = row.backend if row is not None else ""
            against = [results.row("traveling_wilcoxon", name, reference=f"{measure} | {other}")
                       if name else None for other in ("unharmonized", "rescaled")]
            rows.append((Cell(measure.upper().replace("_", "-")), Cell(words), interval_cell(row),
                         *(c for test in against for c in
                           (interval_cell(test), p_cell(test.p_corrected if test else None)))))
    return make_table(
        "Traveling subjects: image similarity between scanners",
        "Mean over traveling subjects. PSNR in dB, RMSE and MAE in R. A method should be better "
        "than unharmonized images and than images that were only rescaled (one linear map per "
        "scan). Differences: median over subjects, Wilcoxon signed-rank test, p corrected by "
        "Holm.",
        ("Measure", "Images", "Mean (95 %)", "Against unharmonized", "p", "Against rescaled", "p"),
        rows, results.row("traveling_pair"))


def _agreement(results: ModalityResults) -> Table:
    features = dict.fromkeys(row.reference for row in results.table.select(name="icc31"))
    rows = [(Cell(feature), Cell(method_words(method)),
             *(interval_cell(results.row(name, method, reference=feature))
               for name in ("icc31", "icc21", "within_subject_cov")))
            for feature in features for method in results.images()]
    return make_table(
        "Traveling subjects: agreement of features between sites",
        "Intraclass correlation between sites, higher is better: ICC(3,1) ignores constant "
        "offsets between sites, ICC(2,1) includes them. Coefficient of variation within a subject "
        "in percent, lower is better.",
        ("Feature", "Images", "ICC(3,1) (95 %)", "ICC(2,1) (95 %)", "Within subject, % (95 %)"),
        rows, results.row("icc31") or results.row("traveling_pair"))


def _identity(results: ModalityResults) -> Table:
    names = ("identification", "identifiability", "source_identification",
             "source_identifiability")
    rows = [(Cell(method_words(method)),
             *(interval_cell(results.row(name, method)) for name in names))
            for method in results.images(combat=False)]
    return make_table(
        "Identification of subjects",
        "Fraction of subjects whose image is most similar to their own at another site, and of "
        "harmonized images that are most similar to their own source among those of the site. "
        "Identifiability: mean similarity to the own image minus that to others.",
        ("Images", "Identified at another site", "Identifiability", "Identified among sources",
         "Identifiability (sources)"), rows,
        results.row("source_identification", results.methods[0] if results.methods else ""))


def _age(results: ModalityResults) -> Table:
    rows = []
    for method in results.images():
        any_slope = results.row("age_interaction_any", method)
        rows.append((Cell(method_words(method)), *(
            interval_cell(results.row(name, method)) for name in ("age_r2", "age_mae", "age_rmse")),
            interval_cell(any_slope), p_cell(any_slope.p if any_slope else None)))
    return make_table(
        "Age",
        "R² and mean absolute error (years) of age, learned at one site and predicted for other "
        "subjects at other sites. Residual error (years) of a regression of age on gray matter "
        "with one slope per site; variance explained by the differences of slopes, and its p. "
        "Slopes that differ between scanners are a scanner effect on biology.",
        ("Images", "R² (95 %)", "Error, years (95 %)", "Residual, years", "Slopes by site", "p"),
        rows, results.row("age_r2"))


def _effects(results: ModalityResults) -> Table:
    rows = []
    for reference in strongest_effects(results):
        for method in results.images():
            row = effect_row(results, method, reference)
            kind = EFFECT_SYMBOLS.get(row.name, "") if row is not None else ""
            feature, covariate = reference.split(" | ")
            rows.append((Cell(feature), Cell(covariate), Cell(method_words(method)), Cell(kind),
                         interval_cell(row), p_cell(row.p if row else None),
                         Cell(str(row.n), row.n) if row else Cell("n/a")))
    return make_table(
        "Covariates",
        "Adjusted for site, age and sex. d: difference of two groups in standard deviations; β: "
        "standardized slope; η²: fraction of variance. p only where each subject has one scan.",
        ("Feature", "Covariate", "Images", "Kind", "Effect (95 %)", "p", "Subjects"), rows,
        results.row("effect_size"))


def _order(results: ModalityResults) -> Table:
    names = ("subject_order", "subject_order_change", "subject_order_within_site")
    features = dict.fromkeys(row.reference for name in names
                             for row in results.table.select(name=name) if row.known)
    rows = [(Cell(feature), Cell(method_words(method)),
             *(interval_cell(results.row(name, method, reference=feature)) for name in names))
            for feature in features for method in results.images()]
    return make_table(
        "Order of subjects",
        "Spearman correlation of a feature between two sites over the subjects scanned at both, "
        "its change against linear rescaling alone (a loss of up to 0.05 is negligible), and the "
        "correlation with the rescaled images over the subjects of a site. 1: the order is kept.",
        ("Feature", "Images", "Between sites (95 %)", "Change (95 %)", "Within sites (95 %)"),
        rows, results.row("subject_order") or results.row("traveling_pair"))


def _change(results: ModalityResults) -> Table:
    kinds = ("same site", "across sites")
    features = dict.fromkeys(row.reference.split(" | ")[0]
                             for row in results.table.select(name="annual_change"))
    rows = [(Cell(feature), Cell(method_words(method)),
             *(interval_cell(results.row("annual_change", method, reference=f"{feature} | {kind}"))
               for kind in kinds),
             interval_cell(results.row("change_loss", method,
                                       reference=f"{feature} | annual change")))
            for feature in features for method in results.images()]
    table = make_table(
        "Change within subjects",
        "Mean annual change between visits half a year or more apart, at one site and across "
        "sites, and the fraction of the change at one site that is lost (up to 0.1 is "
        "negligible). Across sites, the change should become that at one site.",
        ("Feature", "Images", "Annual change, same site (95 %)", "Across sites (95 %)",
         "Fraction lost (95 %)"), rows, None)
    return table if table.rows else replace(
        table, reason="fewer than 4 subjects were scanned twice, half a year or more apart")


def _guard(results: ModalityResults) -> Table:
    rows = []
    for name, (words, higher) in GUARDED.items():
        limit = results.row("anatomy_limit", "", reference=name)
        for method in results.methods:
            found = [v for v in results.verdicts.get(method, {}).values()
                     if name in v.limits and name in v.values]
            broken = sum(limit_fraction(v, name, higher)[1] for v in found)
            rows.append((Cell(words), Cell(method), Cell("at least" if higher else "at most"),
                         interval_cell(limit), interval_cell(results.row("anatomy_measure", method,
                                                        reference=name)),
                         Cell(f"{broken} of {len(found)}", broken) if found else Cell("n/a")))
    limit = results.row("anatomy_limit")
    return make_table(
        "The anatomy guard",
        f"Limits from {limit.method if limit is not None else 'the cohort itself'}. Each measure "
        "compares a harmonized image with its source after a fitted change of contrast.",
        ("Measure", "Method", "Limit is", "Limit", "Mean (95 %)", "Images beyond limit"), rows,
        results.row("anatomy_flagged", results.methods[0] if results.methods else ""))


def compare_methods(results: ModalityResults, found: Mapping[str, Sequence[Verdict]]) -> Table:
    """Make the table that compares all methods, unharmonized images and ComBat."""
    rows = []
    for method in results.images():
        verdicts = [Cell(a.words) for a in found.get(method, ())] or [Cell("")] * 4
        psnr = next(row for words, _, row in pair_rows(results, "psnr") if words == (
            method or "before")) if method not in COMBAT_WORDS else None
        rows.append((Cell(method_words(method)), *verdicts,
                     _number_cell(results.row("site_f1_retrained", method)),
                     _number_cell(results.row("distribution_distance", method, tissue="brain")),
                     _number_cell(psnr), _number_cell(results.row("age_r2", method)),
                     _number_cell(results.row("anatomy_flagged", method))))
    return make_table(
        "Comparison of methods",
        "All methods on the same scans. ComBat is a baseline: it is fitted on features, not on "
        "images, and evaluated on other subjects.",
        ("Images", "Site effect", "Subject", "Biology", "Anatomy", "Site F1", "Distance, R",
         "PSNR, dB", "Age R²", "Flagged"),
        rows, None)


def question_tables(results: ModalityResults) -> dict[str, tuple[Table, ...]]:
    """Make the tables of each question."""
    return {
        "scanner": (_site_table(results), _intensity_table(results), _volumes(results),
                    _paired(results)),
        "subject": (_pairs(results), _agreement(results), _identity(results), _order(results)),
        "biology": (_age(results), _effects(results), _change(results)),
        "anatomy": (_guard(results),),
    }
