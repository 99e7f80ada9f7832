"""Rated scans leave model and statistics; the gallery is made of finished results."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path

from pipelines.outputs.selection import Selection
from pipelines.settings import Settings
from tests.app.running import ROOT, run_app

EXCLUDED = "sub-02_ses-aspen_T1w"


def test_an_excluded_scan_is_in_no_number_and_is_named(full_run, copy: Path, tmp_path: Path
                                                       ) -> None:
    table = tmp_path / "ratings.tsv"
    table.write_text(f"scan_id\trating\tcomment\n{EXCLUDED}\texclude\tmoved a lot\n")
    answer = run_app(full_run.raw, copy, "group", "--stages", "evaluate", "--sloppy", "--exclude",
                     table, "--nprocs", 2, "-w", full_run.work)
    assert answer.code == 0, answer.output
    assert f"1 scan is rated 'exclude' and left out of the model and the statistics: {EXCLUDED} " \
        "(moved a lot)" in answer.output
    with open(copy / "metrics.tsv", encoding="utf-8", newline="") as stream:
        scans = {row["scan"] for row in csv.DictReader(stream, delimiter="\t")}
    assert EXCLUDED not in scans and "sub-02_ses-birch_T1w" in scans
    page = (copy / "group.html").read_text(encoding="utf-8")
    listed = page.partition('id="excluded"')[2].partition("</table>")[0]
    assert EXCLUDED in listed and "moved a lot" in listed
    assert f'data-scan="{EXCLUDED}"' not in page


def test_a_wrong_table_ends_the_run_before_any_work(full_run, copy: Path, tmp_path: Path) -> None:
    table = tmp_path / "ratings.tsv"
    table.write_text(f"scan_id\trating\n{EXCLUDED}\tbad\n")
    before = (copy / "group.html").read_bytes()
    answer = run_app(full_run.raw, copy, "group", "--sloppy", "--exclude", table, "-w", tmp_path)
    assert answer.code == 65 and "row 2" in answer.output and "keep, unsure" in answer.output
    assert (copy / "group.html").read_bytes() == before


def test_the_gallery_has_a_page_of_each_site_and_a_picture(full_run, copy: Path, tmp_path: Path
                                                           ) -> None:
    found = importlib.util.spec_from_file_location("gallery", ROOT / "tools" / "gallery.py")
    gallery = importlib.util.module_from_spec(found)
    found.loader.exec_module(gallery)
    settings = Settings(full_run.raw, copy, ["participant", "group"], sloppy=True,
                        backend="histogram_matching")
    selection = Selection(settings, reads_bids_dir=False)
    gallery.collect(settings, selection, tmp_path / "gallery")
    assert {path.name for path in (tmp_path / "gallery").iterdir()} >= {"group.html", "sub-01.html"}
    page = (tmp_path / "gallery" / "group.html").read_text(encoding="utf-8")
    for path in (tmp_path / "gallery").glob("sub-*.html"):
        assert f'href="{path.name}#' in page
    assert 'class="wall"' in page and page.count("data:image/webp") == 3 * 4
    gallery.write_picture(settings, selection, tmp_path / "wall.png")
    assert (tmp_path / "wall.png").read_bytes()[:4] == b"\x89PNG"
