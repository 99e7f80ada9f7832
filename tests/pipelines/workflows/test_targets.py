"""One desc in an output folder has one method and one target; a change is refused before work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harmonizer.errors import UsageError
from pipelines.dataset.records import ScanRecord
from pipelines.outputs.names import ScanPaths, sidecar
from pipelines.outputs.selection import Selection
from pipelines.settings import Settings
from pipelines.stages.plan import describe_plan
from pipelines.stages.run import check_request
from pipelines.stages.targets import existing_target, planned_target


def settings(out: Path, **values) -> Settings:
    return Settings(out.parent / "raw", out, ["participant", "group"],
                    **{"backend": "histogram_matching", **values})


def harmonized(out: Path, subject: str, label: str, kind: str = "site",
               method: str = "histogram_matching", desc: str = "harmonized") -> None:
    """Write the sidecar of a harmonized image."""
    paths = ScanPaths(out, Path(f"sub-{subject}/anat"), f"sub-{subject}", "T1w", 1)
    path = sidecar(paths.image(desc, template=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"HarmonizationMethod": method, "Target": label,
                                "TargetKind": kind}))


def records(**sites: int) -> list[ScanRecord]:
    names = [(site, f"{site}{n}") for site, count in sites.items() for n in range(count)]
    return [ScanRecord(f"sub-{name}_T1w", f"sub-{name}", name, None, "T1w", Path("x"), site, "test")
            for site, name in names]


def check(given: Settings, **sites: int) -> None:
    check_request(given, Selection.of(given, records(**sites)))


def test_the_default_is_the_largest_site_and_stays_when_another_grows(tmp_path):
    given = settings(tmp_path)
    assert planned_target(given, "T1w", {"A": 3, "B": 3}) == ("site", "A")
    assert planned_target(given, "T1w", {"A": 3, "B": 4}) == ("site", "B")
    harmonized(tmp_path, "01", "A")
    assert planned_target(given, "T1w", {"A": 3, "B": 4}) == ("site", "A")
    check(given, A=3, B=4)


@pytest.mark.parametrize(("changes", "words"), [
    ({"target": ["B"]}, "made by histogram_matching to 'A'; this run is histogram_matching to 'B'"),
    ({"backend": "moment_matching"}, "this run is moment_matching to 'A'"),
])
def test_another_target_or_method_is_refused_before_any_work(tmp_path, changes, words):
    harmonized(tmp_path, "01", "A")
    with pytest.raises(UsageError, match=words):
        check(settings(tmp_path, **changes), A=3, B=4)
    check(settings(tmp_path, **changes, desc="other"), A=3, B=4)
    check(settings(tmp_path, **changes, stages=["preprocess", "fit"]), A=3, B=4)


def test_the_target_of_the_output_folder_that_no_selected_scan_is_of_is_refused(tmp_path):
    harmonized(tmp_path, "01", "A")
    with pytest.raises(UsageError, match="were harmonized to 'A': no T1w scan is from that site"):
        check(settings(tmp_path), B=3, C=4)


def test_images_made_in_several_ways_are_named(tmp_path):
    assert existing_target(settings(tmp_path), "T1w") is None
    harmonized(tmp_path, "01", "A")
    harmonized(tmp_path, "02", "B")
    harmonized(tmp_path, "03", "C", desc="other")
    with pytest.raises(UsageError, match="several targets: 1 by histogram_matching to 'A'; 1 by"):
        check(settings(tmp_path), A=3, B=3)


def test_reference_images_are_asked_for_again_when_the_model_is_fitted_again(tmp_path):
    harmonized(tmp_path, "01", "mean", kind="reference")
    with pytest.raises(UsageError, match="'mean', and a new model needs them again"):
        check(settings(tmp_path), A=3, B=3)


def plan(given: Settings, **sites: int) -> str:
    return "\n".join(describe_plan(given, Selection.of(given, records(**sites))))


def test_a_plan_names_scans_sites_target_and_cost(tmp_path):
    given = settings(tmp_path, stages=["fit", "harmonize", "evaluate"], nprocs=2, sloppy=True)
    text = plan(given, A=2, B=3)
    assert "T1w: 5 scans of 5 participants at 2 sites (A 2, B 3); method histogram_matching; " \
        "target site 'B' (default: 3 scans, the most of all sites)." in text
    for words in ("Stages: fit, harmonize, evaluate.", "fit: T1w on 5 scans.",
                  "harmonize: 5 scans to desc-harmonized; 0 exist already.",
                  "with --nprocs 2", "GB of memory", "GB in OUTPUT_DIR"):
        assert words in text
    assert "training" not in text
    learned = settings(tmp_path, stages=["fit"], backend="cacd", max_minutes=7)
    assert "The training of cacd takes up to 7 more minutes." in plan(learned, A=2, B=3)


def test_a_plan_counts_with_time_for_more_scans_and_fewer_processes(tmp_path):
    def minutes(count: int, nprocs: int) -> int:
        text = plan(settings(tmp_path, stages=["fit", "harmonize", "evaluate"], nprocs=nprocs),
                    A=count, B=count)
        return int(text.partition(": about ")[2].partition(" minutes")[0])

    assert minutes(12, 1) > minutes(6, 1) > minutes(6, 4)
