"""Four questions, four answers in plain words, from the referee's statistics.

Is the scanner gone? Is the person still there? Is biology still there? Did anatomy stay? Each is
answered "yes", "partly", "no" or "unknown", with a sentence that holds number and interval. The
rules are written here and nowhere else; they ask first for what speaks most directly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .statistics.resampling import Statistics, Test

__all__ = ["Answer", "QUESTIONS", "answers"]

QUESTIONS = {
    "scanner": "Is the scanner gone?",
    "person": "Is the person still there?",
    "biology": "Is biology still there?",
    "anatomy": "Did anatomy stay where it was?",
}
SIGNIFICANT = 0.05
WORST = -10.0  # R2 below which a prediction is only called worse


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
    """A classifier trained anew, against chance; else the distance between grey levels.

    Each is asked only where it showed the scanner before.
    """
    unsure: Answer | None = None
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
        if before.p is not None and before.p > SIGNIFICANT:
            unsure = unsure or Answer("scanner", "unknown", "These scans are too few or too alike "
                                      f"to show a scanner effect even before: {sentence}.", after)
            continue
        verdict = ("yes" if after.p > SIGNIFICANT else
                   "partly" if (after.high or after.effect) < before.effect else "no")
        return Answer("scanner", verdict, sentence[0].upper() + sentence[1:] + ".", after)
    return unsure or _unknown("scanner", _row(table, "site_f1_retrained", backend)
                              or _row(table, "site_f1_retrained", ""))


def _person(table: Statistics, backend: str) -> Answer:
    """A person must be told from others as well as before, and look no less like him- or herself.

    First identification: where everybody looks alike, likeness to oneself means nothing. Then
    travelling pairs, against what a linear rescaling of the unharmonized images reaches.
    """
    for name in ("identification", "source_identification"):
        row = _row(table, name, backend)
        if row is not None and not row.known and "is gone" in row.note:
            return Answer("person", "no",
                          "The harmonized images do not tell people apart any more.", row)
    lost = _identity_lost(table, backend)
    pairs = _nearer(table, backend)
    if lost is not None and (lost.verdict == "no" or pairs is None):
        return lost
    if pairs is None:
        return _unknown("person", _row(table, "source_identification", backend)
                        or _row(table, "travelling_pair", ""))
    return pairs if lost is None else Answer(
        "person", min(pairs.verdict, lost.verdict, key=("no", "partly", "yes").index),
        f"{lost.sentence} {pairs.sentence}", pairs.rests_on)


def _identity_lost(table: Statistics, backend: str) -> Answer | None:
    """People identified after, against before (travelling) or against everybody (from sources)."""
    after, before = (_known(table, "identification", name) for name in (backend, ""))
    if after is not None and before is not None:
        verdict = ("yes" if after.effect >= before.effect else
                   "no" if before.low is not None and after.effect < before.low else "partly")
        return Answer("person", verdict, "A person is found again among others at another site in "
                      f"{_percent(after)} of the cases, before in {_percent(before)}.", after)
    after = _known(table, "source_identification", backend)
    if after is None:
        return None
    verdict = "yes" if after.effect >= 0.95 else "partly" if after.effect >= 0.5 else "no"
    return Answer("person", verdict, f"{_percent(after)} of the harmonized images are most like "
                  "their own source among all of the site; nobody was scanned at two sites, so "
                  "more cannot be told.", after)


def _percent(row: Test) -> str:
    return f"{100 * row.effect:.0f} %"


def _nearer(table: Statistics, backend: str) -> Answer | None:
    """Travelling pairs: no measure may fall below doing nothing, nor below a linear rescaling.

    no: an interval lies below what unharmonized images reach; partly: below rescaled ones.
    """
    changes = {row.reference: row for row in table.select(name="travelling_wilcoxon",
                                                          backend=backend)
               if row.known and row.reference.split(" | ")[0] in ("psnr", "ssim")}
    below = {other: [row for name, row in changes.items() if name.endswith(other) and _falls(row)]
             for other in ("unharmonized", "rescaled")}
    if not changes:
        return None
    verdict = "no" if below["unharmonized"] else "partly" if below["rescaled"] else "yes"
    words = "; ".join(f"{name.split(' | ')[0].upper()} against {name.split(' | ')[1]} images by "
                      f"{_with_interval(row)}" for name, row in changes.items()
                      if name.endswith(("unharmonized", "rescaled")))
    people = next(iter(changes.values())).n
    return Answer("person", verdict, f"The likeness of one person's images from two scanners "
                  f"changed, in the median of {people} people: {words}.",
                  next(iter(changes.values())))


def _falls(row: Test) -> bool:
    """Whether a change is below zero with its whole interval, or, without one, by itself."""
    bound = row.effect if row.high is None or row.high != row.high else row.high
    return bound is not None and bound < 0


def _biology(table: Statistics, backend: str) -> Answer:
    """What `_measured_biology` says, unless a covariate cannot be told from site.

    Then a "yes" becomes "unknown": a covariate that is the site may be gone with the scanner.
    """
    answer = _measured_biology(table, backend)
    rows = [row for row in table.select(question="biology") if "cannot be told from site" in
            row.note and (row.name == "site_confounding" or not row.known)]
    lost = dict.fromkeys(row.reference.split(" | ")[-1].split(": ")[0] for row in rows)
    if not lost:
        return answer
    names = " and ".join(lost)
    return Answer("biology", "unknown" if answer.verdict == "yes" else answer.verdict,
                  f"{names[0].upper()}{names[1:]} cannot be told from site here, so these data "
                  f"cannot show whether the effect of {names} survives. {answer.sentence}",
                  answer.rests_on)


def _measured_biology(table: Statistics, backend: str) -> Answer:
    """Age predicted across sites, not below what it was before; where neither images tell anything
    of age that way, the effects of covariates.
    """
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
                    f"{_with_interval(after)}, before "
                    f"{before.effect if before.effect > WORST else WORST:.3g}"
                    f"{'' if before.effect > WORST else ' or worse'}")
        verdict = "no" if fell or after.effect <= 0 < before.effect else (
            "partly" if worse else "yes")
        if before.effect > 0 or (after.low or 0.0) > 0:
            return Answer("biology", verdict, sentence + ".", after)
    return _effects(table, backend)


def _effects(table: Statistics, backend: str) -> Answer:
    """Every covariate effect whose interval excluded zero before should keep its sign.

    One that was asked for again and cannot be given any more is lost.
    """
    names = ("standardised_beta", "cohens_d")
    found = {row.reference: row for name in names for row in table.select(name=name, backend="")
             if row.known and row.low is not None and row.low * row.high > 0}
    rows = [row for name in (*names, "effect_size")
            for row in table.select(name=name, backend=backend)]
    after = {name: row for name in found for row in rows
             if row.reference in (name, name.split(":")[0])}
    if not after:
        return _unknown("biology", _row(table, "age_r2", backend) or _row(table, "age_r2", ""))
    kept = [name for name, row in after.items() if row.known
            and row.effect * found[name].effect > 0 and row.low * row.high > 0]
    verdict = "yes" if len(kept) == len(after) else "partly" if kept else "no"
    return Answer("biology", verdict, f"{len(kept)} of {len(after)} effects of age, sex or named "
                  "covariates that were there before are there after.", next(iter(after.values())))


def _anatomy(table: Statistics, backend: str) -> Answer:
    """Flagged scans against what faithful images would give: limits err now and then."""
    row = _known(table, "anatomy_flagged", backend)
    if row is None:
        return _unknown("anatomy", _row(table, "anatomy_flagged", backend))
    usual = row.effect == 0 or (row.p is not None and row.p > SIGNIFICANT)
    verdict = "no" if row.effect >= 0.5 else "yes" if usual else "partly"
    sentence = (f"{100 * row.effect:.0f} % of the scans break a limit of the anatomy guard "
                f"({row.method.split(';')[0]})")
    if row.effect and verdict == "yes":
        sentence += ", no more than faithful images would; look at those that are named"
    return Answer("anatomy", verdict, sentence + ".", row)
