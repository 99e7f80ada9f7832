"""metrics.tsv: what is written comes back, what is missing is n/a, what is broken is named."""
from __future__ import annotations

import json
import math

import pytest

from harmonizer.errors import InputError
from harmonizer.evaluation.table import MEASURES, Metric, Metrics

ROWS = Metrics((
    Metric("psnr", 31.25, "dB", "change", "01", "A", "sub-01_T1w", "T1w", "siteA"),
    Metric("site_eta_squared", math.nan, stage="before", modality="T1w", reference="mean"),
    Metric("psnr", None, "dB", "change", "02", "", "sub-02_T1w", "T1w", "siteB", tissue="GM"),
))


def test_the_table_survives_the_disk(tmp_path):
    back = Metrics.from_tsv(ROWS.to_tsv(tmp_path / "metrics.tsv"))
    assert back.rows[0] == ROWS.rows[0]
    assert back.rows[2] == ROWS.rows[2]
    assert back.rows[1].value is None and back.rows[1].reference == "mean"


def test_missing_cells_are_na_and_no_cell_breaks_a_line(tmp_path):
    rows = ROWS + Metrics((Metric("mae", 1.0, site="two\nlines\tand a tab"),))
    lines = rows.to_tsv(tmp_path / "m.tsv").read_text().splitlines()
    assert len(lines) == 5
    assert {len(line.split("\t")) for line in lines} == {13}
    assert all(cell for line in lines for cell in line.split("\t"))
    assert Metrics.from_tsv(tmp_path / "m.tsv").rows[3].site == "two lines and a tab"


def test_the_dictionary_explains_every_column_and_measure(tmp_path):
    path = ROWS.to_tsv(tmp_path / "metrics.tsv")
    dictionary = json.loads((tmp_path / "metrics.json").read_text())
    assert list(dictionary) == path.read_text().splitlines()[0].split("\t")
    levels = dictionary["measure"]["Levels"]
    assert set(levels) == {"psnr", "site_eta_squared"}
    assert "10 log10(R^2 / MSE)" in levels["psnr"] and "Better: higher" in levels["psnr"]


def test_selection_and_distinct_values():
    assert ROWS.select(measure="psnr", subject="01").values() == [31.25]
    assert math.isnan(ROWS.select(subject="02").values()[0])
    assert ROWS.distinct("site") == ("siteA", "siteB")


def test_a_broken_table_is_named(tmp_path):
    path = tmp_path / "metrics.tsv"
    with pytest.raises(InputError, match="metrics.tsv: expected a readable"):
        Metrics.from_tsv(path)
    path.write_text("subject\tvalue\n01\t2\n")
    with pytest.raises(InputError, match="session, scan, modality.* not there"):
        Metrics.from_tsv(path)
    ROWS.to_tsv(path)
    path.write_text(path.read_text().replace("31.25", "many"))
    with pytest.raises(InputError, match="expected a number or n/a, got 'many'"):
        Metrics.from_tsv(path)


def test_every_measure_says_direction_and_range():
    assert {measure.better for measure in MEASURES.values()} <= {"higher", "lower", "none"}
    assert all(measure.description and measure.unit and measure.range
               for measure in MEASURES.values())
