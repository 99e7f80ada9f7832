"""What the subject report holds a brain mask to is what the mask was judged by."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from harmonizer.preprocessing.brain import LIMITS, QualityCheck, _reasons
from pipelines.stages.reports import _quality_checks

SOUND = QualityCheck(1.4, (1.1, 1.1, 1.1), 0.2, 0.9, 0.95, 0.01, 0.94)
BROKEN = {"volume_l": (0.5, 2.5), "overlap": (0.5,), "network_dice": (0.7,),
          "mutual_information": (0.01,), "edge_fraction": (0.2,), "cut_fraction": (0.3,)}


def flagged(check: QualityCheck) -> list[str]:
    return [row.limits for row in _quality_checks(asdict(check)) if row.flagged]


def test_a_sound_mask_breaks_nothing_and_every_number_says_what_was_expected() -> None:
    rows = _quality_checks(asdict(SOUND))
    assert not flagged(SOUND) and not _reasons(SOUND)
    assert [row.limits for row in rows] == [
        "0.9 to 2", "at least 0.85", "at least 0.88", "at least 0.1", "at least 0.55",
        "at most 0.05"]


@pytest.mark.parametrize("name, value", [(n, v) for n, vs in BROKEN.items() for v in vs])
def test_a_limit_is_broken_in_the_report_where_the_mask_is_doubted(name: str, value: float) -> None:
    check = replace(SOUND, **{name: value})
    assert len(_reasons(check)) == len(flagged(check)) == 1
    assert set(BROKEN) == set(LIMITS)
