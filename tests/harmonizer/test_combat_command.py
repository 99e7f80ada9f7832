"""The command `harmonizer combat`: tables in, tables out, errors explained."""
from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from harmonizer.combat import ComBat
from harmonizer.combat_command import main
from pipelines.app import main as app_main


@pytest.fixture()
def table(tmp_path):
    rng = np.random.default_rng(0)
    site = np.array(["A"] * 15 + ["B"] * 15)
    frame = pd.DataFrame({
        "participant_id": [f"sub-{n:02d}" for n in range(30)], "site": site,
        "age": rng.uniform(20, 80, 30).round(1), "group": ["control", "patient", "control"] * 10,
        "hippocampus": rng.normal(4000, 300, 30) + 500 * (site == "B"),
        "amygdala": rng.normal(1500, 100, 30) - 90 * (site == "B")})
    path = tmp_path / "volumes.tsv"
    frame.to_csv(path, sep="\t", index=False)
    return path


def test_features_are_harmonized_and_all_else_stays(table, tmp_path, capsys):
    out = tmp_path / "done.tsv"
    flags = ["--site-column", "site", "--covariates", "age", "--output", str(out)]
    assert app_main(["combat", str(table), *flags]) == 0
    assert "2 features of 30 scans from 2 sites" in capsys.readouterr().out
    before, after = pd.read_csv(table, sep="\t"), pd.read_csv(out, sep="\t")
    for name in ("participant_id", "site", "age", "group"):
        assert list(after[name]) == list(before[name])
    expected = ComBat().fit_transform(before[["hippocampus", "amygdala"]], before["site"],
                                      {"age": before["age"]})
    assert after[["hippocampus", "amygdala"]].to_numpy() == pytest.approx(expected, rel=1e-8)


def test_a_saved_model_serves_new_scans(table, tmp_path):
    model, first, again = (tmp_path / name for name in ("model.json", "a.tsv", "b.tsv"))
    assert main([str(table), "--output", str(first), "--fit-rows", "group=control",
                 "--reference", "A", "--features", "amygdala", "--save-model", str(model)]) == 0
    assert main([str(table), "--output", str(again), "--model", str(model)]) == 0
    assert first.read_text() == again.read_text()
    before, after = pd.read_csv(table, sep="\t"), pd.read_csv(first, sep="\t")
    at_a = before["site"] == "A"
    assert after["amygdala"][at_a].to_numpy() == pytest.approx(before["amygdala"][at_a])
    assert (after["hippocampus"] == before["hippocampus"]).all()


@pytest.mark.parametrize(("flags", "code", "message"), [
    (["--site-column", "scanner"], 65, "no column 'scanner'"),
    (["--covariates", "sex"], 65, "no column 'sex'"),
    (["--features", "group"], 65, "missing or infinite values: group"),
    (["--fit-rows", "control"], 2, "expects COLUMN=VALUE"),
    (["--fit-rows", "group=Control"], 65, "Did you mean 'control'"),
    (["--reference", "C"], 65, "reference site 'C' has no scans"),
    (["--model", "m.json", "--reference", "A"], 2, "belong to a fit"),
])
def test_errors_say_what_to_do_and_write_nothing(table, tmp_path, capsys, flags, code, message):
    out = tmp_path / "done.tsv"
    assert main([str(table), "--output", str(out), *flags]) == code
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_the_input_table_is_never_overwritten(table, capsys):
    before = table.read_bytes()
    assert main([str(table), "--output", str(table)]) == 2
    assert "Name another file" in capsys.readouterr().err
    assert table.read_bytes() == before
