"""Answers to the four questions of an evaluation, with the number and interval they are based on.

Each question is answered by "yes", "partly", "no" or "unknown" and a sentence. The rules are
defined here only; each prefers the most direct measure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .statistics.resampling import NO_SUBJECT_INFORMATION, KnownTest, Statistics, Test, is_known

__all__ = ["MIN_SHOWN_R2", "QUESTIONS", "Verdict", "compute_verdicts"]

QUESTIONS = {
    "scanner": "Is the site effect removed?",
    "subject": "Is the subject still identifiable?",
    "biology": "Are biological effects preserved?",
    "anatomy": "Is anatomy unchanged?",
}
SIGNIFICANCE_LEVEL = 0.05
MIN_SHOWN_R2 = -10.0  # a prediction below is reported as worse than this
MAX_FLAGGED_FRACTION = 0.5  # of scans; from here on anatomy is reported as changed
MIN_IDENTIFIED_FRACTION = 0.95  # of sources, for "yes"
MIN_PARTLY_IDENTIFIED_FRACTION = 0.5


@dataclass(frozen=True)
class Verdict:
    """Answer to one question.

    Attributes
    ----------
    question : str
        Key of `QUESTIONS`.
    answer : {"yes", "partly", "no", "unknown"}
        The answer.
    sentence : str
        The answer in words, with number and interval.
    basis : Test or None
        Row that the answer is based on.
    """

    question: str
    answer: str
    sentence: str
    basis: Test | None = None


def compute_verdicts(statistics: Statistics, backend: str, modality: str = ""
                     ) -> tuple[Verdict, ...]:
    """Answer the four questions for one method.

    Parameters
    ----------
    statistics : Statistics
        Tests of an evaluation.
    backend : str
        Name of the method.
    modality : str
        BIDS suffix; "" for all rows.

    Returns
    -------
    tuple of Verdict
        In the order of `QUESTIONS`.
    """
    table = statistics.select(modality=modality) if modality else statistics
    rules: dict[str, Callable[[Statistics, str], Verdict]] = {
        "scanner": _scanner, "subject": _subject, "biology": _biology, "anatomy": _anatomy}
    return tuple(rules[question](table, backend) for question in QUESTIONS)


def _row(table: Statistics, name: str, backend: str, **more: str) -> Test | None:
    rows = table.select(name=name, backend=backend, **more).rows
    return rows[0] if rows else None


def _known(table: Statistics, name: str, backend: str, **more: str) -> KnownTest | None:
    row = _row(table, name, backend, **more)
    return row if is_known(row) else None


def _unknown(question: str, row: Test | None) -> Verdict:
    why = row.note if row is not None and row.note else "no measure is available"
    return Verdict(question, "unknown", f"It cannot be told: {why}.", row)


def _with_interval(row: KnownTest) -> str:
    unit = "" if row.unit == "1" else f" {row.unit}"
    if row.low is None or row.high is None or row.low != row.low:
        return f"{row.effect:.3g}{unit}"
    return f"{row.effect:.3g}{unit} (95 % interval {row.low:.3g} to {row.high:.3g})"


def _scanner(table: Statistics, backend: str) -> Verdict:
    """Compare a retrained classifier with chance, else the distance between site distributions.

    A measure counts only if it shows a site effect before harmonization.
    """
    undetected: Verdict | None = None
    for name, words in (
            ("site_f1_retrained", "a classifier trained on the harmonized images predicts the site "
             "with a macro F1 of"),
            ("distribution_distance", "the intensity distributions of the sites have a distance "
             "of")):
        before = _known(table, name, "", tissue="brain")
        after = _known(table, name, backend, tissue="brain")
        if before is None or after is None or after.p is None:
            continue
        sentence = f"{words} {_with_interval(after)}, before {before.effect:.3g}"
        chance = _known(table, "site_chance", backend)
        if name == "site_f1_retrained" and chance is not None:
            sentence += f"; chance gives {chance.low:.2g} to {chance.high:.2g}"
        if before.p is not None and before.p > SIGNIFICANCE_LEVEL:
            undetected = undetected or Verdict(
                "scanner", "unknown", "No site effect was detected before harmonization, because "
                f"there are too few scans or the sites are too similar: {sentence}.", after)
            continue
        answer = ("yes" if after.p > SIGNIFICANCE_LEVEL else
                  "partly" if (after.high or after.effect) < before.effect else "no")
        return Verdict("scanner", answer, sentence[0].upper() + sentence[1:] + ".", after)
    return undetected or _unknown("scanner", _row(table, "site_f1_retrained", backend)
                                  or _row(table, "site_f1_retrained", ""))


def _subject(table: Statistics, backend: str) -> Verdict:
    """Require that subjects are identified as well as before and are no less similar to themselves.

    Identification comes first: if all images are alike, similarity to oneself is meaningless. Then
    come traveling pairs, compared with a linear rescaling of the unharmonized images.
    """
    for name in ("identification", "source_identification"):
        row = _row(table, name, backend)
        if row is not None and not row.known and NO_SUBJECT_INFORMATION in row.note:
            return Verdict("subject", "no",
                           "The harmonized images of different subjects cannot be distinguished.",
                           row)
    identified = _identification(table, backend)
    pairs = _pair_similarity(table, backend)
    if identified is not None and (identified.answer == "no" or pairs is None):
        return identified
    if pairs is None:
        return _unknown("subject", _row(table, "source_identification", backend)
                        or _row(table, "traveling_pair", ""))
    return pairs if identified is None else Verdict(
        "subject", min(pairs.answer, identified.answer, key=("no", "partly", "yes").index),
        f"{identified.sentence} {pairs.sentence}", pairs.basis)


def _identification(table: Statistics, backend: str) -> Verdict | None:
    """Compare identification across sites with before, or rate identification among sources."""
    after, before = (_known(table, "identification", name) for name in (backend, ""))
    if after is not None and before is not None:
        answer = ("yes" if after.effect >= before.effect else
                  "no" if before.low is not None and after.effect < before.low else "partly")
        return Verdict("subject", answer, "Subjects are identified at another site in "
                       f"{_percent(after)} of the cases, before in {_percent(before)}.", after)
    after = _known(table, "source_identification", backend)
    if after is None:
        return None
    answer = ("yes" if after.effect >= MIN_IDENTIFIED_FRACTION else
              "partly" if after.effect >= MIN_PARTLY_IDENTIFIED_FRACTION else "no")
    return Verdict("subject", answer, f"{_percent(after)} of the harmonized images are most "
                   "similar to their own source among all of the site. No subject was scanned at "
                   "two sites, so identification across sites cannot be measured.", after)


def _percent(row: KnownTest) -> str:
    return f"{100 * row.effect:.0f} %"


def _pair_similarity(table: Statistics, backend: str) -> Verdict | None:
    """Compare the similarity of traveling pairs with unharmonized and linearly rescaled images.

    no: an interval lies below unharmonized images; partly: below rescaled images.
    """
    changes = {row.reference: row for row in table.select(name="traveling_wilcoxon",
                                                          backend=backend)
               if is_known(row) and row.reference.split(" | ")[0] in ("psnr", "ssim")}
    if not changes:
        return None
    below = {other: [row for name, row in changes.items()
                     if name.endswith(other) and _decreases(row)]
             for other in ("unharmonized", "rescaled")}
    answer = "no" if below["unharmonized"] else "partly" if below["rescaled"] else "yes"
    words = "; ".join(f"{name.split(' | ')[0].upper()} against {name.split(' | ')[1]} images by "
                      f"{_with_interval(row)}" for name, row in changes.items()
                      if name.endswith(("unharmonized", "rescaled")))
    first = next(iter(changes.values()))
    return Verdict("subject", answer, "The similarity of a subject's images from two scanners "
                   f"changed (median of {first.n} subjects): {words}.", first)


def _decreases(row: Test) -> bool:
    """Return whether the interval of a change, or without one the change, is below zero."""
    bound = row.effect if row.high is None or row.high != row.high else row.high
    return bound is not None and bound < 0


def _biology(table: Statistics, backend: str) -> Verdict:
    """Answer by measured effects, but never "yes" if a covariate is confounded with the site.

    The effect of such a covariate may be removed with the site effect.
    """
    verdict = _measured_biology(table, backend)
    rows = [row for row in table.select(question="biology") if "cannot be told from site" in
            row.note and (row.name == "site_confounding" or not row.known)]
    confounded = dict.fromkeys(row.reference.split(" | ")[-1].split(": ")[0] for row in rows)
    if not confounded:
        return verdict
    names = " and ".join(confounded)
    return Verdict("biology", "unknown" if verdict.answer == "yes" else verdict.answer,
                   f"{names[0].upper()}{names[1:]} cannot be told from site here, so these data "
                   f"cannot show whether the effect of {names} is preserved. {verdict.sentence}",
                   verdict.basis)


def _measured_biology(table: Statistics, backend: str) -> Verdict:
    """Compare the prediction of age across sites with before, else the effects of covariates.

    The prediction counts only if it works before or after harmonization.
    """
    lost = [row for row in table.select(question="biology", backend=backend)
            if NO_SUBJECT_INFORMATION in row.note]
    if lost:
        return Verdict("biology", "no", f"The features are the same in every scan ({len(lost)} "
                       f"effects cannot be measured): {NO_SUBJECT_INFORMATION}.", lost[0])
    before, after = (_known(table, "age_r2", name) for name in ("", backend))
    if before is not None and after is not None and (before.effect > 0 or (after.low or 0.0) > 0):
        fell = before.low is not None and after.effect < before.low
        answer = ("no" if fell or after.effect <= 0 < before.effect else
                  "partly" if after.effect < before.effect else "yes")
        below = before.effect <= MIN_SHOWN_R2
        return Verdict("biology", answer, "The prediction of age at other sites has an R2 of "
                       f"{_with_interval(after)}, before "
                       f"{max(before.effect, MIN_SHOWN_R2):.3g}{' or worse' if below else ''}.",
                       after)
    return _covariate_effects(table, backend)


def _covariate_effects(table: Statistics, backend: str) -> Verdict:
    """Count the covariate effects, significant before, that keep their sign and significance.

    An effect that cannot be estimated after harmonization is lost.
    """
    names = ("standardized_beta", "cohens_d")
    before = {row.reference: row for name in names for row in table.select(name=name, backend="")
              if is_known(row) and row.excludes_zero}
    rows = [row for name in (*names, "effect_size")
            for row in table.select(name=name, backend=backend)]
    after = {name: row for name in before for row in rows
             if row.reference in (name, name.split(":")[0])}
    if not after:
        return _unknown("biology", _row(table, "age_r2", backend) or _row(table, "age_r2", ""))
    preserved = [name for name, row in after.items() if is_known(row)
                 and row.effect * before[name].effect > 0 and row.excludes_zero]
    answer = "yes" if len(preserved) == len(after) else "partly" if preserved else "no"
    return Verdict("biology", answer, f"{len(preserved)} of {len(after)} effects of age, sex or "
                   "named covariates that were significant before are preserved.",
                   next(iter(after.values())))


def _anatomy(table: Statistics, backend: str) -> Verdict:
    """Compare the fraction of flagged scans with that expected of faithful images."""
    row = _known(table, "anatomy_flagged", backend)
    if row is None:
        return _unknown("anatomy", _row(table, "anatomy_flagged", backend))
    as_expected = row.effect == 0 or (row.p is not None and row.p > SIGNIFICANCE_LEVEL)
    answer = "no" if row.effect >= MAX_FLAGGED_FRACTION else "yes" if as_expected else "partly"
    sentence = (f"{100 * row.effect:.0f} % of the scans exceed a limit of the anatomy guard "
                f"({row.method.split(';')[0]})")
    if row.effect and answer == "yes":
        sentence += ", no more than expected of faithful images; inspect the flagged scans"
    return Verdict("anatomy", answer, sentence + ".", row)
