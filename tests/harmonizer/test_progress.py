"""Progress bars: on stderr, one for each phase, and closed whatever happens."""

import pytest

from harmonizer import progress
from harmonizer.progress import phases, progress_bar, reporter


def test_each_phase_has_a_bar_on_stderr(capsys):
    with phases("evaluate") as report:
        for phase, total in (("scans", 2), ("pairs", 3)):
            for done in range(total + 1):
                report(phase, done, total)
    said = capsys.readouterr()
    assert not said.out
    assert "evaluate scans: 100%" in said.err and "2/2" in said.err
    assert "evaluate pairs: 100%" in said.err and "3/3" in said.err


def test_a_phase_that_stops_closes_its_bar(monkeypatch):
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
