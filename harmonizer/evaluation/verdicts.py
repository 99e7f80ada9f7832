"""Answers to the four questions of an evaluation, from intervals and margins stated in advance.

A question is answered by "yes" only if an interval excludes every effect (or loss) beyond its
margin. A difference that was not found is not called absent. The answer is then "not detectable",
with the number of subjects and the smallest effect that would have been found. The rules are
defined here only; the margins are in `statistics.equivalence`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from .statistics.equivalence import (
    FEATURES_FRACTION,
    OWN_TO_OTHERS_MARGIN,
    RETENTION_MARGIN,
    SITE_VARIANCE_MARGIN,
)
from .statistics.resampling import NO_SUBJECT_INFORMATION, KnownTest, Statistics, Test, is_known

__all__ = ["MIN_SHOWN_R2", "QUESTIONS", "Verdict", "compute_verdicts", "site_answers"]

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
MAX_NAMED_FEATURES = 4
ANSWERS = {"removed": "yes", "reduced": "partly", "present": "no", "undetectable": "unknown",
           "absent": "unknown"}
WORDS = {
    "scanner": {"yes": "Removed", "partly": "Reduced", "no": "Still there"},
    "subject": {"yes": "Preserved", "partly": "Reduced", "no": "Lost"},
    "biology": {"yes": "Preserved", "partly": "Reduced", "no": "Lost"},
    "anatomy": {"yes": "Unchanged", "partly": "Changed in some images", "no": "Changed"},
}
ABSENT = "No site effect, before or after"
CANNOT_BE_TOLD = "Cannot be told"


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
        The answer in words, with numbers, intervals and margins.
    basis : Test or None
        Row that the answer is based on.
    words : str
        Short form of the answer, such as "Reduced" or "Not detectable with n = 24".
    """

    question: str
    answer: str
    sentence: str
    basis: Test | None = None
    words: str = CANNOT_BE_TOLD


@dataclass(frozen=True)
class _Part:
    """Answer from one measure: a key of `ANSWERS`, a sentence and its row."""

    answer: str
    sentence: str
    row: Test


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


def _verdict(question: str, answer: str, sentence: str, row: Test | None) -> Verdict:
    """Return a verdict with its short form; "unknown" with a number is "not detectable"."""
    words = WORDS[question].get(answer, CANNOT_BE_TOLD)
    if answer == "unknown" and row is not None and row.known:
        words = f"Not detectable with n = {row.n}"
    return Verdict(question, answer, sentence, row, words)


def _unknown(question: str, row: Test | None) -> Verdict:
    why = row.note if row is not None and row.note else "no measure is available"
    return Verdict(question, "unknown", f"It cannot be told: {why}.", row)


def _number(value: float | None, unit: str = "") -> str:
    return "n/a" if value is None or not math.isfinite(value) else f"{value:.3g}{unit}"


def _with_interval(row: Test) -> str:
    unit = "" if row.unit in ("", "1") else f" {row.unit}"
    if not _has_interval(row):
        return _number(row.effect, unit)
    low, high = _ends(row)
    return f"{_number(row.effect, unit)} (95 % interval {low:.3g} to {high:.3g})"


def _ends(row: Test) -> tuple[float, float]:
    """Return the ends of the interval, NaN without one; a comparison with NaN is false."""
    return (math.nan if row.low is None else row.low, math.nan if row.high is None else row.high)


def _has_interval(row: Test) -> bool:
    return all(math.isfinite(end) for end in _ends(row))


def _margin_of(row: Test) -> float:
    return math.nan if row.margin is None else row.margin


def _detectable(row: Test) -> float:
    return math.nan if row.detectable is None else row.detectable


def _sentence_case(text: str) -> str:
    return text[:1].upper() + text[1:]


# --- scanner --------------------------------------------------------------------------------------


def site_answers(table: Statistics, backend: str) -> dict[str, str]:
    """Return the answer of each measure of the site effect.

    Parameters
    ----------
    table : Statistics
        Tests of one modality.
    backend : str
        Name of the method.

    Returns
    -------
    dict of str to str
        "classification", "intensities" and "features", as far as they are measured, to "removed",
        "reduced", "present", "undetectable" or "absent".
    """
    return {name: part.answer for name, part in _site_parts(table, backend).items()}


def _site_parts(table: Statistics, backend: str) -> dict[str, _Part]:
    parts = {
        "classification": _site_part(
            table, "site_f1_excess", backend,
            "a classifier of the site exceeds chance by a macro F1 of"),
        "intensities": _site_part(
            table, "distribution_excess", backend, "the intensity distributions of the sites "
            "differ, in units of the distance between subjects of a site, by"),
        "features": _features_part(table, backend)}
    return {name: part for name, part in parts.items() if part is not None}


def _scanner(table: Statistics, backend: str) -> Verdict:
    """Combine classification, intensities and features.

    "yes" needs every measure inside its margin; one measure that is beyond it decides.
    """
    parts = list(_site_parts(table, backend).values())
    if not parts:
        return _unknown("scanner", _row(table, "site_f1_excess", backend)
                        or _row(table, "site_f1_retrained", backend)
                        or _row(table, "site_f1_retrained", ""))
    order = ("present", "reduced", "undetectable", "removed", "absent")
    parts.sort(key=lambda part: order.index(part.answer))  # stable: the decisive one first
    first = parts[0]
    sentence = " ".join(_sentence_case(part.sentence) + "." for part in parts)
    if first.answer in ("undetectable", "reduced"):
        sentence += _detectable_words([p for p in parts if p.answer not in ("removed", "absent")])
    if first.answer == "absent":
        return Verdict("scanner", "unknown", sentence, first.row, ABSENT)
    return _verdict("scanner", ANSWERS[first.answer], sentence, first.row)


def _site_part(table: Statistics, name: str, backend: str, words: str) -> _Part | None:
    """Compare one measure of the site effect with its margin and with its value before."""
    after = _known(table, name, backend, tissue="brain")
    if after is None:
        return None
    before = _known(table, name, "", tissue="brain", stage="before")
    rescaled = _known(table, name, "", tissue="brain", stage="rescaled")
    sentence = (f"{words} {_with_interval(after)}, margin {_margin_of(after):.3g}"
                f"{_yardsticks(before, rescaled)}")
    answer = _equivalence(after, before)
    if rescaled is not None and after.effect >= rescaled.effect and answer not in (
            "removed", "absent"):
        sentence += ", no better than linear rescaling alone"
    return _Part(answer, sentence, after)


def _equivalence(after: KnownTest, before: KnownTest | None) -> str:
    """Return the answer for an effect that should vanish."""
    (low, high), margin = _ends(after), _margin_of(after)
    if high < margin:
        return "absent" if before is not None and _ends(before)[1] < margin else "removed"
    if before is not None and high < before.effect:
        return "reduced"
    return "present" if low > margin else "undetectable"


def _yardsticks(before: Test | None, rescaled: Test | None) -> str:
    """Return the same number before and after linear rescaling alone."""
    parts = [f"{words} {_number(row.effect)}" for words, row in (
        ("before", before), ("linear rescaling alone", rescaled)) if row is not None]
    return f" ({', '.join(parts)})" if parts else ""


def _features_part(table: Statistics, backend: str) -> _Part | None:
    """Compare the site's fraction of the variance of each feature with its margin."""
    row = _known(table, "features_within_margin", backend)
    after = _variances(table, backend, "after")
    if row is None or not after:
        return None
    before, rescaled = (_variances(table, "", stage) for stage in ("before", "rescaled"))
    answer = _features_answer(after, before)
    count = ", ".join(f"{words} {_count_inside(tests, after)}" for words, tests in (
        ("before", before), ("linear rescaling alone", rescaled)) if tests)
    sentence = (f"the site explains less than {100 * SITE_VARIANCE_MARGIN:.0f} % of the variance "
                f"of {_count_inside(after, after)} of {len(after)} features of intensity, texture, "
                f"noise and volume, interval included{f' ({count})' if count else ''}")
    above = sorted((test for test in after.values() if _ends(test)[0] > SITE_VARIANCE_MARGIN),
                   key=lambda test: -test.effect)
    if above:
        named = ", ".join(f"{test.reference} {100 * test.effect:.0f} %"
                          for test in above[:MAX_NAMED_FEATURES])
        more = f" and {len(above) - MAX_NAMED_FEATURES} more" * (len(above) > MAX_NAMED_FEATURES)
        sentence += f"; more of {named}{more}"
    return _Part(answer, sentence, row)


def _variances(table: Statistics, backend: str, stage: str) -> dict[str, KnownTest]:
    rows = table.select(name="site_variance", backend=backend)
    return {row.reference: row for row in rows
            if is_known(row) and (row.stage == stage or not row.stage)}


def _count_inside(tests: Mapping[str, Test], named: Iterable[str]) -> int:
    return sum(name in tests and _ends(tests[name])[1] < SITE_VARIANCE_MARGIN for name in named)


def _features_answer(after: Mapping[str, KnownTest], before: Mapping[str, KnownTest]) -> str:
    """Return the answer of the features; 5 % of them may miss the margin."""
    def enough(flags: Sequence[bool]) -> bool:
        return bool(flags) and sum(flags) >= FEATURES_FRACTION * len(flags)

    if enough([_ends(test)[1] < SITE_VARIANCE_MARGIN for test in after.values()]):
        same = [_ends(before[name])[1] < SITE_VARIANCE_MARGIN for name in after if name in before]
        return "absent" if enough(same) else "removed"
    seen = [name for name in after
            if name in before and _ends(before[name])[0] > SITE_VARIANCE_MARGIN]
    if enough([_ends(after[name])[1] < before[name].effect for name in seen]):
        return "reduced"
    above = sum(_ends(test)[0] > SITE_VARIANCE_MARGIN for test in after.values())
    return "present" if above > (1 - FEATURES_FRACTION) * len(after) else "undetectable"


def _detectable_words(parts: Sequence[_Part]) -> str:
    """Return the smallest effects that would have been found."""
    words = []
    for part in parts:
        row = part.row
        if not math.isfinite(_detectable(row)):
            continue
        name = {"site_f1_excess": "a macro F1 above chance of",
                "distribution_excess": "a distance of",
                "features_within_margin": "a fraction of a feature's variance of"}.get(row.name, "")
        words.append(f"{name} {_detectable(row):.2g}")
    if not words:
        return ""
    return f" With n = {parts[0].row.n} the smallest detectable effect is {', '.join(words)}."


# --- subject --------------------------------------------------------------------------------------


def _subject(table: Statistics, backend: str) -> Verdict:
    """Require that subjects are identified as well as by linear rescaling alone.

    The margins are a loss of 5 % of identification, of the distance to oneself relative to others,
    and of the error between two images of a traveling subject. Identification of few subjects has a
    wide interval; the distances then decide, if no loss of identification was seen.
    """
    for name in ("identification", "source_identification"):
        row = _row(table, name, backend)
        if row is not None and not row.known and NO_SUBJECT_INFORMATION in row.note:
            return _verdict("subject", "no",
                            "The harmonized images of different subjects cannot be distinguished.",
                            row)
    identified = _known(table, "identification_change", backend)
    distance = _known(table, "own_to_others_change", backend)
    pairs = _known(table, "pair_error_change", backend)
    if distance is None and pairs is None:
        return _source_identity(table, backend)
    answers = [_loss_answer(identified, -1), _loss_answer(distance), _loss_answer(pairs)]
    rows: tuple[KnownTest | None, ...] = (identified, distance, pairs)
    decisive = next(row for row in (distance, pairs) if row is not None)
    if "lost" in answers:
        found = rows[answers.index("lost")]
        decisive = decisive if found is None else found
        answer = "no" if "lost" in answers[:2] else "partly"
    elif "undetectable" in answers[1:] or (identified is not None and identified.effect < 0
                                           and answers[0] == "undetectable"):
        answer = "unknown"
        decisive = next((row for part, row in zip(answers[1:], rows[1:])
                         if row is not None and part == "undetectable"), decisive)
    else:
        answer = "yes"
    return _verdict("subject", answer, _subject_words(table, backend, identified, distance, pairs),
                    decisive)


def _loss_answer(row: Test | None, sign: int = 1) -> str:
    """Return "kept", "lost" or "undetectable" for a change with a margin; "" without one."""
    if row is None:
        return ""
    (low, high), margin = _ends(row), _margin_of(row)
    if sign < 0:
        low, high = -high, -low
    return "kept" if high < margin else "lost" if low > margin else "undetectable"


def _subject_words(table: Statistics, backend: str, identified: KnownTest | None,
                   distance: KnownTest | None, pairs: KnownTest | None) -> str:
    sentences = []
    after, before = (_known(table, "identification", name) for name in (backend, ""))
    if identified is not None and after is not None and before is not None:
        sentences.append(
            f"Of {after.n} traveling subjects, {100 * after.effect:.0f} % are identified at "
            f"another site, before and with linear rescaling alone {100 * before.effect:.0f} %; "
            f"with n = {after.n} a loss of {100 * _detectable(identified):.0f} % would have been "
            "seen.")
    if distance is not None:
        sentences.append("The distance to the own image relative to others changes by "
                         f"{_with_interval(distance)}, margin {_margin_of(distance):.3g}.")
    if pairs is not None:
        sentences.append("The error between a subject's images from two scanners changes by "
                         f"{_percent_interval(pairs)} against linear rescaling alone, margin "
                         f"{100 * _margin_of(pairs):.0f} %.")
    return " ".join(sentences)


def _percent_interval(row: KnownTest, sign: int = 1) -> str:
    """Return a change in percent; with a sign of -1, of a loss."""
    text = f"{100 * sign * row.effect:+.0f} %"
    if not _has_interval(row):
        return text
    low, high = sorted(100 * sign * end for end in _ends(row))
    return f"{text} (95 % interval {low:+.0f} to {high:+.0f} %)"


def _source_identity(table: Statistics, backend: str) -> Verdict:
    """Rate identification among sources, where no subject was scanned at two sites."""
    row = _known(table, "source_identification", backend)
    ratio = _known(table, "source_own_to_others", backend)
    if row is None:
        return _unknown("subject", _row(table, "source_identification", backend)
                        or _row(table, "traveling_pair", ""))
    low, high = _ends(row)
    sentence = (f"{100 * row.effect:.0f} % of the harmonized images (exact 95 % interval "
                f"{100 * low:.0f} to {100 * high:.0f} %) are most similar to their own source "
                "among all of the site, as all linearly rescaled images are. ")
    nearest, farthest = (math.nan, math.nan) if ratio is None else _ends(ratio)
    if ratio is not None:
        sentence += (f"Their distance to it is {_with_interval(ratio)} of that to sources of other "
                     f"subjects, margin {OWN_TO_OTHERS_MARGIN:g}. ")
    sentence += ("No subject was scanned at two sites, so identification across sites cannot be "
                 "measured.")
    if high < MIN_PARTLY_IDENTIFIED_FRACTION or nearest > OWN_TO_OTHERS_MARGIN:
        answer = "no"
    elif high < MIN_IDENTIFIED_FRACTION:
        answer = "partly"
    elif low > MIN_IDENTIFIED_FRACTION or (
            row.effect >= MIN_IDENTIFIED_FRACTION and farthest < OWN_TO_OTHERS_MARGIN):
        answer = "yes"
    else:
        answer = "unknown"
    return _verdict("subject", answer, sentence, row)


# --- biology --------------------------------------------------------------------------------------


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
    sentence = (f"{_sentence_case(names)} cannot be told from site here, so these data cannot show "
                f"whether the effect of {names} is preserved. {verdict.sentence}")
    if verdict.answer == "yes":
        return Verdict("biology", "unknown", sentence, verdict.basis)
    return Verdict("biology", verdict.answer, sentence, verdict.basis, verdict.words)


def _measured_biology(table: Statistics, backend: str) -> Verdict:
    """Require that every effect that is established before loses at most a tenth."""
    lost = [row for row in table.select(question="biology", backend=backend)
            if NO_SUBJECT_INFORMATION in row.note]
    if lost:
        return _verdict("biology", "no", f"The features are the same in every scan ({len(lost)} "
                        f"effects cannot be measured): {NO_SUBJECT_INFORMATION}.", lost[0])
    rows = [row for name in ("age_r2_loss", "effect_loss", "change_loss")
            for row in table.select(name=name, backend=backend) if is_known(row)]
    if not rows:
        return _unknown("biology", _row(table, "age_r2_loss", backend)
                        or _row(table, "age_r2", backend) or _row(table, "age_r2", ""))
    by_answer: dict[str, list[KnownTest]] = {"lost": [], "undetectable": [], "kept": []}
    for row in rows:
        by_answer[_loss_answer(row)].append(row)
    gone = [row for row in by_answer["lost"] if _ends(row)[1] >= 1]
    answer = ("no" if gone else "partly" if by_answer["lost"] else
              "unknown" if by_answer["undetectable"] else "yes")
    decisive = (gone or by_answer["lost"] or by_answer["undetectable"] or by_answer["kept"])[0]
    return _verdict("biology", answer, _biology_words(table, backend, by_answer), decisive)


def _biology_words(table: Statistics, backend: str, by_answer: Mapping[str, list[KnownTest]]
                   ) -> str:
    total = sum(map(len, by_answer.values()))
    sentence = (f"Of {total} effects that are established before harmonization, "
                f"{len(by_answer['kept'])} lose at most {100 * RETENTION_MARGIN:.0f} %, "
                "interval included.")
    for answer, words in (("lost", "Lost more: "), ("undetectable", "Not detectable: ")):
        named = by_answer[answer][:MAX_NAMED_FEATURES]
        if named:
            sentence += " " + words + "; ".join(
                f"{_effect_name(row)}, change {_percent_interval(row, -1)}"
                + (f", smallest detectable loss {100 * _detectable(row):.0f} %"
                   if answer == "undetectable" and math.isfinite(_detectable(row)) else "")
                for row in named) + "."
    before, rescaled, after = (_known(table, "age_r2", name, stage=stage) for name, stage in (
        ("", "before"), ("", "rescaled"), (backend, "after")))
    if after is not None:
        sentence += (f" R2 of age predicted at other sites: {_r2_words(after)}; before "
                     f"{_r2_words(before)}, linear rescaling alone {_r2_words(rescaled)}.")
    return sentence


def _effect_name(row: Test) -> str:
    if row.name == "age_r2_loss":
        return "prediction of age"
    feature, covariate = row.reference.split(" | ")
    return f"{covariate} on {feature}"


def _r2_words(row: Test | None) -> str:
    if row is None or row.effect is None:
        return "n/a"
    return f"{MIN_SHOWN_R2:g} or worse" if row.effect <= MIN_SHOWN_R2 else _number(row.effect)


# --- anatomy --------------------------------------------------------------------------------------


def _anatomy(table: Statistics, backend: str) -> Verdict:
    """Compare the fraction of flagged images with the nominal rate of faithful images."""
    row = _known(table, "anatomy_flagged", backend)
    if row is None:
        return _unknown("anatomy", _row(table, "anatomy_flagged", backend))
    nominal = _margin_of(row) if math.isfinite(_margin_of(row)) else 0.0
    low, high = _ends(row)
    more = row.p is not None and row.p <= SIGNIFICANCE_LEVEL
    if row.effect >= MAX_FLAGGED_FRACTION:
        answer = "no"
    elif row.effect <= nominal:
        answer = "yes"
    else:
        answer = "partly" if more else "unknown"
    interval = (f" (exact 95 % interval {100 * low:.0f} to {100 * high:.0f} %)"
                if _has_interval(row) else "")
    sentence = (f"{100 * row.effect:.0f} % of the images{interval} exceed a limit of the anatomy "
                f"guard ({row.method.split(';')[0]}); of faithful images, {100 * nominal:.0f} % "
                "do. Linear rescaling alone changes no anatomy.")
    if math.isfinite(_detectable(row)):
        sentence += (f" With so many images, a fraction of {100 * _detectable(row):.0f} % of "
                     "changed ones would have been found.")
    if row.effect:
        sentence += " Inspect the flagged scans."
    return _verdict("anatomy", answer, sentence, row)
