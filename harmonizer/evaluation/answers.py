"""Four questions, four answers in plain words, from the referee's statistics.

Is the scanner gone? Is the person still there? Is biology still there? Did anatomy stay? Each is
answered "yes", "partly", "no" or "unknown", with a sentence that holds number and interval. The
rules are written here and nowhere else; they ask first for what speaks most directly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .statistics import Statistics, Test

__all__ = ["Answer", "QUESTIONS", "answers"]

QUESTIONS = {
    "scanner": "Is the scanner gone?",
    "person": "Is the person still there?",
    "biology": "Is biology still there?",
    "anatomy": "Did anatomy stay where it was?",
}
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Answer:
    """``verdict``: yes, partly, no or unknown; ``rests_on``: the row it rests on, if any."""

    question: str
    verdict: str
    sentence: str
    rests_on: Test | None = None


def answers(statistics: Statistics, backend: str, modality: str = "") -> tuple[Answer, ...]:
    """The four answers for one method (and one modality, where there are several)."""
    table = statistics.select(modality=modality) if modality else statistics
    rules: dict[str, Callable[[Statistics, str], Answer]] = {
        "scanner": _scanner, "person": _person, "biology": _biology, "anatomy": _anatomy}
    return tuple(rule(table, backend) for rule in rules.values())


def _row(table: Statistics, name: str, backend: str, **more: str) -> Test | None:
    rows = table.select(name=name, backend=backend, **more).rows
    return rows[0] if rows else None


def _known(table: Statistics, name: str, backend: str, **more: str) -> Test | None:
    row = _row(table, name, backend, **more)
    return row if row is not None and row.known else None


def _unknown(question: str, row: Test | None) -> Answer:
    why = row.note if row is not None and row.note else "nothing was measured that could tell"
    return Answer(question, "unknown", f"It cannot be told: {why}.", row)


def _with_interval(row: Test) -> str:
    unit = "" if row.unit == "1" else f" {row.unit}"
    if row.low is None or row.high is None or row.low != row.low:
        return f"{row.effect:.3g}{unit}"
    return f"{row.effect:.3g}{unit} (95 % interval {row.low:.3g} to {row.high:.3g})"


def _scanner(table: Statistics, backend: str) -> Answer:
    """A classifier trained anew, against chance; else the distance between grey levels."""
    for name, tissue, words in (
            ("site_f1_retrained", "brain", "a classifier trained on the harmonized images guesses "
             "the site with a macro F1 of"),
            ("distribution_distance", "brain", "the sites' grey levels are apart by")):
        before = _known(table, name, "", tissue=tissue)
        after = _known(table, name, backend, tissue=tissue)
        if before is None or after is None or after.p is None:
            continue
        sentence = f"{words} {_with_interval(after)}, before {before.effect:.3g}"
        chance = _known(table, "site_chance", backend)
        if name == "site_f1_retrained" and chance is not None:
            sentence += f"; chance gives {chance.low:.2g} to {chance.high:.2g}"
        verdict = ("yes" if after.p > SIGNIFICANT else
                   "partly" if (after.high or after.effect) < before.effect else "no")
        if verdict == "yes" and before.p is not None and before.p > SIGNIFICANT:
            return Answer("scanner", "unknown", "There was no scanner effect to remove that these "
                          f"scans could show: {sentence}.", after)
        return Answer("scanner", verdict, sentence[0].upper() + sentence[1:] + ".", after)
    return _unknown("scanner", _row(table, "site_f1_retrained", backend)
                    or _row(table, "site_f1_retrained", ""))


def _person(table: Statistics, backend: str) -> Answer:
    """Travelling people: no measure may fall below doing nothing; else unknown."""
    changes = [row for row in table.select(name="travelling_wilcoxon", backend=backend)
               if row.known and row.reference in ("psnr | unharmonized", "ssim | unharmonized")]
    if not changes:
        return _unknown("person", _row(table, "travelling_pair", backend)
                        or _row(table, "travelling_pair", ""))
    up = sum(row.effect > 0 for row in changes)
    words = ", ".join(f"{row.reference.split(' | ')[0].upper()} by a median of "
                      f"{_with_interval(row)}" for row in changes)
    sure = [row for row in changes if row.p_corrected is not None
            and row.p_corrected <= SIGNIFICANT]
    verdict = "yes" if up == len(changes) else "partly" if up else "no"
    sentence = (f"Against unharmonized images, {changes[0].n} people's pictures from two scanners "
                f"came nearer to each other in {up} of {len(changes)} measures: {words}"
                + ("" if sure else "; not significant after correction"))
    return Answer("person", verdict, sentence + ".", changes[0])


def _biology(table: Statistics, backend: str) -> Answer:
    """Age predicted across sites, then effects of covariates: not below what it was before."""
    lost = [row for row in table.select(question="biology", backend=backend)
            if "whatever it told of people is gone" in row.note]
    if lost:
        return Answer("biology", "no", f"The features are the same in every scan ({len(lost)} "
                      "effects cannot be measured any more): whatever they told of people is gone.",
                      lost[0])
    before, after = (_known(table, "age_r2", name) for name in ("", backend))
    if before is not None and after is not None:
        fell = before.low is not None and after.effect < before.low
        worse = after.effect < before.effect
        sentence = (f"Age learned at one site and predicted at others reaches an R2 of "
                    f"{_with_interval(after)}, before {before.effect:.3g}")
        verdict = "no" if fell or after.effect <= 0 < before.effect else (
            "partly" if worse else "yes")
        if before.effect <= 0 and after.effect <= 0:
            verdict = "unknown"
            sentence += "; neither tells anything of age"
        return Answer("biology", verdict, sentence + ".", after)
    return _effects(table, backend)


def _effects(table: Statistics, backend: str) -> Answer:
    """Every covariate effect whose interval excluded zero before should keep its sign."""
    names = ("standardised_beta", "cohens_d")
    found = {row.reference: row for name in names for row in table.select(name=name, backend="")
             if row.known and row.low is not None and row.low * row.high > 0}
    after = {row.reference: row for name in names for row in table.select(name=name,
                                                                          backend=backend)
             if row.known}
    shared = [name for name in found if name in after]
    if not shared:
        return _unknown("biology", _row(table, "age_r2", backend) or _row(table, "age_r2", ""))
    kept = [name for name in shared if after[name].effect * found[name].effect > 0
            and after[name].low * after[name].high > 0]
    verdict = "yes" if len(kept) == len(shared) else "partly" if kept else "no"
    return Answer("biology", verdict, f"{len(kept)} of {len(shared)} effects of age, sex or named "
                  "covariates that were there before are there after.", after[shared[0]])


def _anatomy(table: Statistics, backend: str) -> Answer:
    """Flagged scans against what faithful images would give."""
    row = _known(table, "anatomy_flagged", backend)
    if row is None:
        return _unknown("anatomy", _row(table, "anatomy_flagged", backend))
    count = round(row.effect * row.n)
    verdict = "yes" if count == 0 else "no" if row.effect >= 0.5 else "partly"
    sentence = (f"{100 * row.effect:.0f} % of the scans break a limit of the anatomy guard "
                f"({row.method.split(';')[0]})")
    return Answer("anatomy", verdict, sentence + ".", row)
