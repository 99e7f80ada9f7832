"""What the group report makes of the evaluation's tests: cards, drawings, sortable tables."""
from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from harmonizer.evaluation.questions.anatomy_limits import AnatomyCheck
from harmonizer.evaluation.statistics.resampling import Statistics, Test, not_possible
from harmonizer.reports.evidence import evidence_of
from harmonizer.reports.intervals import Band, Mark, Strip, interval_chart, strip_chart
from harmonizer.reports.results import COMBAT

EVIL = "<script>alert('x')</script>"
LIMITS = {"ssim_structure": 0.9, "edge_displacement": 0.5}


def row(name: str, backend: str = "", effect: float = 0.5, p: float | None = None, std=0.1,
        **more) -> Test:
    given = {"stage": "after" if backend else "before", "modality": "T1w", **more}
    return Test(name, 20, effect, effect - std, effect + std, p, p, backend=backend, **given)


NOTHING = (not_possible("traveling_pair", "no subject was scanned at two sites", modality="T1w"),
           not_possible("age_r2", "2 subjects with an age", modality="T1w"))


def statistics(*more: Test) -> Statistics:
    rows = [row("site_f1_retrained", "", 0.9, 0.005), row("site_f1_retrained", "x", 0.3, 0.4),
            row("site_f1_retrained", COMBAT, 0.35, 0.3), row("site_chance", "x", 0.3, std=0.15),
            row("site_f1_retrained", "", 0.6, 0.005, stage="rescaled"),
            row("site_f1_excess", "", 0.6, margin=0.1), row("site_f1_excess", "x", -0.01, std=0.05,
                                                           margin=0.1),
            row("anatomy_limit", reference="ssim_structure", effect=0.9, question="anatomy"),
            row("anatomy_flagged", "x", 0.5, 0.001, margin=0.05,
                method="limits from 5 pairs of rescans; more")]
    return Statistics((*rows, *(more or NOTHING)))


def verdict(structure: float, edges: float) -> AnatomyCheck:
    values = {"ssim_structure": structure, "edge_displacement": edges}
    ok = structure >= 0.9 and edges <= 0.5
    return AnatomyCheck(ok, () if ok else ("structure (SSIM): low",), values, LIMITS)


CHECKS = {"x": {"a": verdict(0.99, 0.1), "b": verdict(0.8, 0.1), "c": verdict(0.95, 0.6)}}


@pytest.fixture(scope="module")
def evidence():
    return evidence_of(statistics(), "T1w", ["x"], CHECKS)


def circles(chart, look: str) -> list[float]:
    """Places of all circles of a class along the axis."""
    tree = ElementTree.fromstring(str(chart))
    return [float(c.get("cx")) for c in tree.iter("circle") if c.get("class").split()[0] == look]


def test_a_card_per_question_with_verdict_number_and_picture(evidence):
    cards = {card.question: card for card in evidence.cards}
    assert list(cards) == ["scanner", "subject", "biology", "anatomy"]
    assert [c.verdict for c in evidence.cards] == ["yes", "unknown", "unknown", "no"]
    assert [c.verdict_words for c in evidence.cards] == [
        "Removed", "Cannot be told", "Cannot be told", "Changed"]
    assert cards["scanner"].number == "-0.01" and cards["anatomy"].number == "50 %"
    assert "no subject was scanned at two sites" in cards["subject"].sentence
    assert cards["subject"].number == "" and cards["subject"].chart is None
    drawn = str(cards["scanner"].chart)
    assert "chance" in drawn and "ComBat (features)" in drawn and "only rescaled" in drawn
    rescaled, combat = circles(drawn, "other")
    assert circles(drawn, "before")[0] > rescaled > combat > circles(drawn, "after")[0]


def test_images_beyond_the_limit_stand_beyond_the_line_and_are_named(evidence):
    chart = evidence.cards[3].chart
    limit = next(line for line in ElementTree.fromstring(str(chart)).iter("line")
                 if line.get("class") == "limit")
    assert len(circles(chart, "after")) == 4 and len(circles(chart, "bad")) == 2
    assert min(circles(chart, "bad")) > float(limit.get("x1")) > max(circles(chart, "after"))
    assert [scan for scan, _, _ in evidence.flagged] == ["b", "c"]


def test_tables_hold_numbers_or_the_reason_why_not(evidence):
    guesses, levels, *_ = evidence.tables["scanner"]
    assert [r[0].text for r in guesses.rows] == [
        "before", "only rescaled", "x", "ComBat (features)"]
    assert guesses.rows[2][1].text == "0.3 (0.2 to 0.4)" and guesses.rows[2][1].order == 0.3
    assert guesses.rows[0][2].text == "0.005"
    assert guesses.rows[2][3].text == "0.15 to 0.45"
    assert levels.rows == () and levels.reason == "not measured"
    pairs = evidence.tables["subject"][0]
    assert pairs.rows == () and pairs.reason == "no subject was scanned at two sites"
    guard = evidence.tables["anatomy"][0]
    assert guard.rows[0][-1].text == "1 of 3" and guard.rows[0][3].order == 0.9


def test_methods_side_by_side():
    more = (row("site_f1_retrained", "y", 0.75, 0.005),
            row("site_f1_excess", "y", 0.45, margin=0.1))
    table = evidence_of(statistics(*more), "T1w", ["x", "y"], CHECKS).methods
    assert [r[0].text for r in table.rows] == ["before", "only rescaled", "x", "y",
                                               "ComBat (features)"]
    assert table.rows[2][1].text == "Removed" and table.rows[3][1].text == "Reduced"
    assert [r[5].text for r in table.rows] == ["0.9", "0.6", "0.3", "0.75", "0.35"]


def test_travelling_pairs_biology_and_volumes_are_told():
    pairs = [row("traveling_pair", name, value, reference="psnr", unit="dB", stage=stage)
             for name, value, stage in (("", 20.0, "before"), ("", 24.0, "rescaled"),
                                        ("x", 27.0, "after"))]
    changes = [row("traveling_wilcoxon", "x", value, 0.03, unit="dB", reference=f"psnr | {other}")
               for value, other in ((7.0, "unharmonized"), (3.0, "rescaled"))]
    changes.append(row("pair_error_change", "x", -0.3, std=0.1, margin=0.05))
    rest = [row("age_r2", name, value) for name, value in (("", 0.4), ("x", 0.5))]
    rest.append(row("age_r2_loss", "x", -0.25, std=0.2, margin=0.1, reference="age"))
    rest += [row("standardized_beta", name, 0.4, 0.02, reference="GM ratio | age", std=0.2)
             for name in ("", "x")]
    rest += [row("marginal_r2", name, 0.3, tissue="GM") for name in ("", "x")]
    found = evidence_of(statistics(*pairs, *changes, *rest), "T1w", ["x"], CHECKS)
    cards = {card.question: card for card in found.cards}
    assert cards["subject"].number == "-30 %" and len(circles(cards["subject"].chart, "other")) == 1
    assert cards["biology"].verdict == "yes" and cards["biology"].number == "+25 %"
    table = found.tables["subject"][0]
    assert [cell.text for cell in table.rows[-1]][3:7] == [
        "7 (6.9 to 7.1)", "0.030", "3 (2.9 to 3.1)", "0.030"]
    assert [r[2].text for r in found.tables["biology"][1].rows] == ["before", "x"]
    assert found.tables["scanner"][2].rows[0][2].order == 0.3


def test_a_prediction_that_failed_altogether_is_told_in_words():
    rows = [row("age_r2", "", -1.2e5, std=1e5), row("age_r2", "x", 0.8)]
    found = evidence_of(statistics(*rows), "T1w", ["x"], CHECKS)
    assert [r[1].text for r in found.tables["biology"][0].rows] == ["< -10", "0.8 (0.7 to 0.9)"]
    drawn = str(found.cards[2].chart)
    assert "&lt; -10" in drawn and "120000" not in drawn and "-1.2" not in drawn
    assert circles(drawn, "after")[0] - circles(drawn, "before")[0] > 100


def test_without_age_the_card_draws_effects():
    effects = [row("standardized_beta", name, value, 0.02, reference="GM ratio | age", std=0.2)
               for name, value in (("", -0.6), ("x", -0.5))]
    loss = row("effect_loss", "x", 0.17, std=0.5, margin=0.1, reference="GM ratio | age")
    card = evidence_of(statistics(*effects, loss), "T1w", ["x"], CHECKS).cards[2]
    assert card.verdict_words == "Not detectable with n = 20" and "GM, age" in str(card.chart)
    assert circles(card.chart, "before")[0] < circles(card.chart, "after")[0]
    assert (card.number, card.number_words) == ("-17 %", "change of the effect of age on the GM "
                                                "ratio")


def test_the_picture_is_of_what_the_answer_rests_on():
    rows = [row("age_r2", name, -0.5) for name in ("", "x")]
    rows += [row("standardized_beta", name, -0.6, 0.02, reference="GM ratio | age", std=0.2)
             for name in ("", "x")]
    rows.append(row("effect_loss", "x", 0.0, std=0.05, margin=0.1, reference="GM ratio | age"))
    card = evidence_of(statistics(*rows), "T1w", ["x"], CHECKS).cards[2]
    assert card.verdict == "yes" and "GM, age" in str(card.chart)


def test_drawings_escape_their_words_and_are_xml():
    marks = [Mark(EVIL, 1.0, 0.0, 2.0), Mark("gone", None), Mark("nan", float("nan"))]
    chart = interval_chart(marks, EVIL, band=Band(0.5, 0.7, EVIL))
    tree = ElementTree.fromstring(str(chart))
    assert EVIL not in str(chart) and tree.get("aria-label") == EVIL
    assert str(chart).count(">n/a<") == 2
    assert strip_chart([Strip(EVIL, ((1.0, False), (float("inf"), True)))], EVIL, EVIL)


def test_wide_intervals_do_not_dwarf_the_values():
    chart = interval_chart([Mark("a", 0.4, 0.3, 0.5), Mark("b", 0.5, -60.0, 0.6)], "x", zero=True)
    a, b = circles(chart, "after")
    assert 15 < b - a < 200
    assert all(0 <= float(x) <= 560 for x in re.findall(r'x[12]?="([-\d.]+)"', str(chart)))


def test_only_some_of_a_thousand_dots_are_drawn_but_every_bad_one():
    values = tuple((i / 1000, False) for i in range(1000)) + ((1.5, True),) * 30
    chart = strip_chart([Strip("m", values)], "x", "limit")
    assert len(circles(chart, "after")) == 200 and len(circles(chart, "bad")) == 30
