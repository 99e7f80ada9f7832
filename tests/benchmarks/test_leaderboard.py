"""Tests of the benchmark commands: sections are replaced in place, folds are by subject."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

import pytest

from harmonizer.cohort import Cohort, Scan
from harmonizer.errors import InputError
from harmonizer.evaluation.metrics.distribution import QuantileTable
from harmonizer.evaluation.run import EvaluationResult
from harmonizer.evaluation.statistics.resampling import Statistics, Test, not_possible
from harmonizer.evaluation.table import Metrics

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def module(name: str):
    """Import a benchmark under a name that no other module has."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    made = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    sys.modules[spec.name] = made
    try:
        spec.loader.exec_module(made)
    finally:
        sys.path[:] = before
    return made


@pytest.fixture(scope="module")
def leaderboard():
    return module("leaderboard")


def test_a_section_is_added_once_and_replaced_in_place(tmp_path):
    put, path = module("sections").put_section, tmp_path / "b.md"
    put(path, "One", "first")
    put(path, "Two", "second")
    put(path, "One", "third\n\n### Part\n\nwith \\1 and | bars |")
    text = path.read_text()
    assert text.startswith("# Benchmarks\n") and "first" not in text
    assert text.index("## One") < text.index("with \\1 and | bars |") < text.index("## Two")
    assert text.count("## One") == text.count("## Two") == 1 and text.endswith("second\n")
    assert "\n\n\n" not in text


def scans(plan: dict[str, str]) -> Cohort:
    return Cohort(tuple(Scan(f"sub-{who}_ses-{site}_T1w", who, site, "T1w", site, "test", Path("x"),
                             Path("m")) for who, sites in plan.items() for site in sites))


def test_people_are_dealt_whole_and_every_part_has_all_sites(leaderboard):
    cohort = scans({**{f"{i}": "A" for i in range(8)}, **{f"{i}": "B" for i in range(8, 16)},
                    "20": "AB"})
    parts = leaderboard.dealt(cohort, 4)
    assert sorted(who for part in parts for who in part) == sorted(cohort.subjects)
    assert all({s.site for s in cohort.of_subjects(part)} == {"A", "B"} for part in parts)
    assert len(leaderboard.dealt(scans({"1": "AB", "2": "AB", "3": "AB"}), 4)) == 3


def test_the_table_shows_what_is_known_and_no_more(leaderboard):
    def row(name, backend, effect, stage, **more):
        return Test(name, 9, effect, backend=backend, stage=stage, **more)

    table = Statistics((
        row("site_f1_retrained", "", 0.9, "before"), row("site_f1_retrained", "x", 0.3, "after"),
        row("traveling_pair", "", 20.0, "before", reference="psnr"),
        row("traveling_pair", "", 24.04, "rescaled", reference="psnr"),
        row("traveling_pair", "x", 26.0, "after", reference="psnr"),
        row("age_r2", "", -1e5, "before"), row("age_r2", "x", 0.5, "after"),
        not_possible("identification", "too few", backend="x"),
        Test("site_chance", 9, 0.3, 0.2, 0.4)))
    lines = leaderboard.table(EvaluationResult(Metrics(), table, QuantileTable(), {}, {}), ["x"])
    assert lines[0] == ("| method | site F1 | PSNR, dB | age R² | scanner gone | subject there | "
                        "biology there | anatomy stayed |")
    assert lines[2].startswith("| unharmonized | 0.90 | 20.0 | < -10 |")
    assert lines[3].startswith("| only rescaled |  | 24.0 |  |")
    assert lines[4].startswith("| x | 0.30 | 26.0 | 0.50 |")
    assert lines[-1] == "Chance guesses the site with an F1 of 0.20 to 0.40."


def test_scans_are_brought_to_a_coarser_grid_once(leaderboard, tmp_path):
    from harmonizer.template import load_template
    from harmonizer.volume import write_mask, write_volume

    fine = load_template(5)
    write_mask(tmp_path / "m.nii.gz", fine.mask, fine.affine)
    scan = Scan("sub-1_T1w", "1", None, "T1w", "A", "test",
                write_volume(tmp_path / "x.nii.gz", fine), tmp_path / "m.nii.gz")
    made = leaderboard.coarsened(Cohort((scan,)), 8, tmp_path / "coarse").scans[0].read()
    assert made.same_grid(load_template(8)) and not made.data[~made.mask].any()
    assert made.in_mask().mean() == pytest.approx(fine.in_mask().mean(), rel=0.1)
    kept = (tmp_path / "coarse" / "sub-1_T1w.nii.gz").stat().st_mtime_ns
    leaderboard.coarsened(Cohort((scan,)), 8, tmp_path / "coarse")
    assert (tmp_path / "coarse" / "sub-1_T1w.nii.gz").stat().st_mtime_ns == kept


def test_a_method_gets_its_own_options_and_its_minutes(leaderboard, tmp_path, monkeypatch):
    """Options of one method never reach another; a training has a folder for each fold."""
    from harmonizer.methods import registry

    seen = []
    for name in ("cacd", "disarm"):
        kind = registry.get(name)
        monkeypatch.setattr(kind, "fit", lambda self, cohort, seed: seen.append(
            (self.config, self.resources)))
        monkeypatch.setattr(kind, "save", lambda self, folder: folder)
    given = leaderboard._parser().parse_args([
        str(tmp_path), "--set", "cacd.preset=tiny", "cacd.validate_every=7", "--minutes", "3"])
    for name in ("cacd", "disarm"):
        leaderboard.fitted(name, Cohort(()), tmp_path / name / "fold-0", given)
    (cacd, resources), (disarm, _) = seen
    assert (cacd.preset, cacd.training_schedule().validate_every) == ("tiny", 7)
    assert disarm.preset != "tiny"
    assert (resources.folder, resources.max_minutes) == (tmp_path / "cacd" / "fold-0", 3.0)
    assert "--set cacd.preset=tiny cacd.validate_every=7 --minutes 3" in leaderboard._command(given)


def test_a_command_that_finds_nothing_says_so(capsys, tmp_path):
    lines = module("command_line")
    with pytest.raises(SystemExit, match="no T1w images"):
        lines.printed(iter([]), "T1w images")
    assert lines.printed([{"image": "one", "dice": 0.9}]) == [{"image": "one", "dice": 0.9}]
    assert capsys.readouterr().out == "one 0.9\n"
    with pytest.raises(argparse.ArgumentTypeError, match="no such folder"):
        lines.existing_folder(str(tmp_path / "missing"))


def test_what_the_app_explains_is_no_traceback(capsys):
    def main():
        raise InputError("no label maps. Give the folder.")

    assert module("command_line").report_errors(main) == 1
    assert capsys.readouterr().err == "no label maps. Give the folder.\n"
