"""Progress: bars on a terminal, whole lines in a log file, closed whatever happens."""

import sys

import pytest

from harmonizer import progress
from harmonizer.progress import LineProgress, phases, progress_bar, reporter


def test_each_phase_has_a_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with phases("evaluate") as report:
        for phase, total in (("scans", 2), ("pairs", 3)):
            for done in range(total + 1):
                report(phase, done, total)
    lines = capsys.readouterr()
    assert not lines.out
    assert "evaluate scans: 100%" in lines.err and "2/2" in lines.err
    assert "evaluate pairs: 100%" in lines.err and "3/3" in lines.err


def test_a_phase_that_stops_closes_its_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    bars = []
    monkeypatch.setattr(progress, "progress_bar",
                        lambda *given: bars.append(progress_bar(*given)) or bars[-1])
    with pytest.raises(ValueError, match="a scan is broken"), phases("evaluate") as report:
        report("scans", 1, 2)
        raise ValueError("a scan is broken")
    assert [bar.disable for bar in bars] == [True]  # tqdm's word for a closed bar


def test_a_reporter_learns_its_total():
    bar, report = reporter("fit")
    report(3, 10)
    assert (bar.n, bar.total) == (3, 10)
    bar.close()


def test_a_log_file_gets_whole_lines_and_no_carriage_return(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_INTERVAL_S", 0.0)
    with progress_bar(3, "preprocess") as bar:
        assert isinstance(bar, LineProgress)
        for _ in range(3):
            bar.update(1)
            bar.set_postfix_str("sub-01 brain", refresh=False)
        bar.write("sub-02 failed", file=sys.stderr)
    bar.close()  # a second time prints nothing
    lines = capsys.readouterr()
    assert not lines.out and "\r" not in lines.err
    lines = lines.err.splitlines()
    assert lines[0].startswith("preprocess: 1 of 3 steps, about ")
    assert lines[2:] == ["preprocess: 3 of 3 steps", "sub-02 failed",
                         "preprocess: 3 of 3 steps in 0 s"]


def test_a_phase_that_stops_ends_its_lines(capsys):
    with pytest.raises(ValueError, match="a scan is broken"), phases("evaluate") as report:
        report("scans", 1, 2)
        raise ValueError("a scan is broken")
    assert capsys.readouterr().err == "evaluate scans: 1 of 2 steps in 0 s\n"


def test_a_log_file_gets_few_lines(capsys):
    with progress_bar(1000, "fit") as bar:
        for _ in range(1000):
            bar.update(1)
    assert capsys.readouterr().err == "fit: 1000 of 1000 steps in 0 s\n"


@pytest.mark.parametrize(("seconds", "text"), [
    (0.4, "0 s"), (119.0, "119 s"), (150.0, "2 min"), (5400.0, "1 h 30 min"),
])
def test_durations_are_in_words(seconds, text):
    assert progress._duration(seconds) == text
