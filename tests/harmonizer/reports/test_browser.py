"""The reports in headless Chromium: search, brush, click, wipe, rate and export."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harmonizer.reports.draw import new_canvas, to_png
from harmonizer.reports.figures import Figure
from harmonizer.reports.group import render_group_report
from harmonizer.reports.slices import scan_slices
from harmonizer.reports.subject import Check, ScanReport, SubjectReport, render_subject_report
from harmonizer.template import load_template
from pipelines.dataset.ratings import read_excluded

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "benchmarks"))
from browser import find_browser, open_browser  # noqa: E402
from report_pages import simulated_report  # noqa: E402

pytestmark = pytest.mark.skipif(find_browser() is None, reason="no Chromium or no Playwright")
SCANS, SITES = 12, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A group report, and the report of one of its subjects."""
    folder = tmp_path_factory.mktemp("reports")
    render_group_report(folder / "group.html", simulated_report(SCANS, SITES))
    template = load_template(2)
    dark = template.with_data(np.asarray(template.data) ** 2)
    frames = []
    for level in "123":
        canvas = new_canvas(60, 40)
        canvas.text(0.4, 0.4, level)
        frames.append(to_png(canvas))
    figure = Figure("Tissues", "Three.", "A picture", tuple(frames), ("fluid", "gray", "white"))
    scan = ScanReport("sub-004_T1w", figures=(figure,), facts={"site": "site02"},
                      checks=(Check("fraction of the mask's border at the edge of the image",
                                    0.279, "nats", "at least 0.85"),),
                      provenance={"model (SHA-256)": "0123456789abcdef" * 4},
                      slices=scan_slices(dark, template, template.mask))
    render_subject_report(folder / "sub-004.html", SubjectReport(
        "004", (scan,), group_report="group.html", study="simulated"))
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as found:
        yield found


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page with its own storage; an error or a breach of the policy fails the test."""
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    found = context.new_page()
    problems: list[str] = []
    found.on("pageerror", lambda error: problems.append(str(error)))
    found.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
    yield found
    context.close()
    assert problems == []


def open_group(page: Any, folder: Path) -> None:
    page.goto((folder / "group.html").as_uri())
    page.wait_for_selector("#scatter circle")


def visible_rows(page: Any) -> list[str]:
    return page.eval_on_selector_all(
        "tr[data-scan]", "rows => rows.filter(r => r.offsetParent).map(r => r.dataset.scan)")


def test_a_search_marks_scans_in_plots_wall_and_table(page, folder) -> None:
    open_group(page, folder)
    assert page.locator("#strip circle").count() == 2 * SCANS
    assert page.locator(".wall [data-scan]").count() == 3 * SCANS
    page.fill("#search", "SITE02")
    wanted = [f"sub-{number:03d}_T1w" for number in range(SCANS) if number % SITES == 1]
    assert visible_rows(page) == wanted
    assert page.inner_text("#explore-count") == f"{len(wanted)} of {SCANS} scans"
    for place, each in (("#strip circle", 2), ("#scatter circle", 1), (".wall [data-scan]", 3)):
        assert page.locator(f"{place}:not(.out)").count() == each * len(wanted), place
    page.click("#explore-clear")
    page.select_option("#filter-site", "site03")
    assert len(visible_rows(page)) == SCANS // SITES


def test_a_brush_selects_scans_and_a_click_opens_the_page_of_one(page, folder) -> None:
    open_group(page, folder)
    page.select_option("#scatter-x", label="distance to target, before (R)")
    page.locator("#scatter").scroll_into_view_if_needed()
    places = page.eval_on_selector_all("#scatter circle", """dots => dots.map(dot => {
        const place = dot.getBoundingClientRect();
        return [dot.dataset.scan, place.x + place.width / 2, place.y + place.height / 2];
    })""")
    scan, x, y = next(place for place in places if place[0] == "sub-004_T1w")
    page.mouse.move(x - 9, y - 9)
    page.mouse.down()
    page.mouse.move(x + 9, y + 9, steps=3)
    page.mouse.up()
    inside = {name for name, across, up in places if abs(across - x) < 9 and abs(up - y) < 9}
    assert scan in inside and set(visible_rows(page)) == inside
    page.mouse.move(x, y)
    assert page.is_visible("#scan-note") and scan in page.inner_text("#scan-note")
    assert page.locator("#scan-note img").count() == 3
    page.mouse.click(x, y)
    page.wait_for_url("**/sub-*.html*")
    assert page.url.endswith("#sub-004_T1w") or len(inside) > 1


def test_ratings_stay_and_are_exported_as_the_table_that_exclude_reads(page, folder, tmp_path
                                                                       ) -> None:
    open_group(page, folder)
    rate = '[data-rate="sub-004_T1w"]'
    assert page.is_disabled(".export")
    page.select_option(f"{rate} select", "exclude")
    page.fill(f"{rate} input", "moved\ta lot")
    page.select_option('[data-rate="sub-001_T1w"] select', "keep")
    page.reload()
    assert page.input_value(f"{rate} select") == "exclude"
    page.select_option("#filter-flag", "rated exclude")
    assert visible_rows(page) == ["sub-004_T1w"]
    page.goto((folder / "sub-004.html").as_uri())
    assert page.input_value(f"{rate} select") == "exclude"
    with page.expect_download() as download:
        page.click(".export")
    table = tmp_path / download.value.suggested_filename
    download.value.save_as(table)
    assert table.read_text() == ("scan_id\trating\tcomment\nsub-001_T1w\tkeep\tn/a\n"
                                 "sub-004_T1w\texclude\tmoved a lot\n")
    assert read_excluded(table) == {"sub-004_T1w": "moved a lot"}


def test_the_viewer_wipes_moves_through_slices_and_has_overlays(page, folder) -> None:
    page.goto((folder / "sub-004.html").as_uri())
    page.wait_for_selector(".viewer[data-ready]")

    def pixels() -> np.ndarray:
        width, height, values = page.eval_on_selector(
            ".plane canvas", "c => [c.width, c.height, "
            "[...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]]")
        return np.array(values, int).reshape(height, width, 4)[..., :3]

    def wipe(percent: int) -> np.ndarray:
        page.eval_on_selector(".wipe", "(e, v) => {e.value = v; "
                              "e.dispatchEvent(new Event('input'))}", percent)
        return pixels()

    before, after, half = wipe(100), wipe(0), wipe(50)
    middle = round(before.shape[1] / 2)
    assert np.abs(after - before).max() > 40  # the image before has another contrast
    assert (half[:, :middle] == before[:, :middle]).all()
    assert (half[:, middle + 2:] == after[:, middle + 2:]).all()
    place = page.inner_text(".plane output")
    page.focus(".plane input")
    page.keyboard.press("ArrowRight")
    assert page.inner_text(".plane output") != place and (pixels() != half).any()
    plain = wipe(0)
    page.check('[data-overlay="outlines"]')
    outlined = pixels()
    assert ((outlined - plain)[..., 0] > 100).any()
    page.uncheck('[data-overlay="outlines"]')
    page.check('[data-overlay="change"]')
    red = pixels()
    assert (red[..., 0] - red[..., 2]).max() > 60  # fluid is brighter after than before
    page.locator(".plane canvas").first.click(position={"x": 30, "y": 30})
    assert 0 < float(page.input_value(".wipe")) < 30


def test_three_frames_are_shown_one_at_a_time_and_all_in_print(page, folder) -> None:
    page.goto((folder / "sub-004.html").as_uri())

    def shown() -> list[bool]:
        return page.eval_on_selector_all(".choice .frame", "frames => frames.map(frame => "
                                         "getComputedStyle(frame).visibility === 'visible')")

    assert shown() == [True, False, False]
    page.click(".choice label >> text=white")
    assert shown() == [False, False, True]
    page.emulate_media(media="print")
    assert shown() == [True, True, True]
    tops = page.eval_on_selector_all(".choice .frame",
                                     "frames => frames.map(f => f.getBoundingClientRect().top)")
    assert len(set(tops)) == 3 and page.locator(".viewer").is_hidden()


@pytest.mark.parametrize("name", ["group.html", "sub-004.html"])
def test_nothing_is_wider_than_a_phone(page, folder, name) -> None:
    page.set_viewport_size({"width": 420, "height": 800})
    page.goto((folder / name).as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
