"""Size and speed of the group report of many scans in headless Chromium.

    python benchmarks/report_pages.py OUT [--scans 600] [--sites 8] [--markdown docs/benchmarks.md]

A report is made from simulated numbers and slices of the template with noise, contrast and gain of
each site. *file*: size on disk. *render*: seconds to write the file. *first paint*: milliseconds
until the browser shows something, *interactive*: until the plots are drawn. *memory*: of the
browser's JavaScript heap, and resident memory of its page process; *page CPU*: processor seconds
of that process until the plots are drawn, which other work on the machine does not change.
*search*: milliseconds from a key press until all plots, tiles and rows are marked.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import numpy as np  # noqa: E402
from browser import find_browser, open_browser  # noqa: E402
from command_line import printed, report_errors  # noqa: E402
from sections import put_section  # noqa: E402

from harmonizer.errors import UnavailableError  # noqa: E402
from harmonizer.evaluation.metrics.distribution import QuantileRow, QuantileTable  # noqa: E402
from harmonizer.evaluation.questions.anatomy_limits import AnatomyCheck  # noqa: E402
from harmonizer.evaluation.table import Metric, Metrics  # noqa: E402
from harmonizer.reports.group import GroupReport, ScanRow, render_group_report  # noqa: E402
from harmonizer.reports.mosaic import plan_stack  # noqa: E402
from harmonizer.reports.wall import WALL_POSITION_MM, WallSlice  # noqa: E402
from harmonizer.template import load_template  # noqa: E402

COLUMNS = ("scans", "file, MB", "render, s", "first paint, ms", "interactive, ms", "heap, MB",
           "page process, MB", "page CPU, s", "search, ms")
FEATURES = ("median", "p95", "gm_wm_ratio", "csf_wm_ratio", "noise_wm", "blur_x", "blur_y",
            "blur_z")
SEED = 1


def template_slice() -> np.ndarray:
    """Return the slice of the wall through the template: (rows, columns), 0 to 1."""
    template = load_template(2)
    stack = plan_stack(template.mask, template.affine, "axial", 24, 2.0, margin_mm=4.0)
    heights = [template.affine[2, 3] + template.affine[2, 2] * tile.index for tile in stack.tiles]
    tile = stack.tiles[int(np.abs(np.array(heights) - WALL_POSITION_MM).argmin())]
    brain = np.where(template.mask, template.data, 0)
    return stack.cut(brain)[tile.top:tile.top + tile.height] / np.percentile(brain, 99.9)


def simulated_report(scans: int, sites: int) -> GroupReport:
    """Make the content of a report: sites differ before harmonization and agree after it."""
    rng = np.random.default_rng(SEED)
    brain, levels = template_slice(), np.linspace(0.2, 1, 200)
    rows, metrics, quantiles, slices, checks = [], [], [], {}, {}
    for number in range(scans):
        site = f"site{number % sites + 1:02d}"
        scan, subject = f"sub-{number:03d}_T1w", f"{number:03d}"
        gain, power = 1 + 0.15 * (number % sites), 1 + 0.1 * (number % sites - 1)
        rows.append(ScanRow(scan, subject, site, "T1w", float(rng.integers(20, 80)),
                            "MF"[number % 2]))
        pictures = {"before": brain**power, "after": brain}
        slices[scan] = WallSlice(
            *(np.clip(255 * (0.9 * picture + (brain > 0) * rng.normal(0, 0.02, brain.shape)), 0,
                      255).astype(np.uint8) for picture in pictures.values()),
            {"before": (0.0, gain), "after": (0.0, 1.0)})
        for stage in pictures:
            shape = gain * levels**power if stage == "before" else levels
            quantiles.append(QuantileRow(scan, subject, site, "T1w", stage, "brain",
                                         shape + rng.normal(0, 0.01)))
            place = (stage, subject, "", scan, "T1w", site)
            center = number % sites if stage == "before" else 0
            metrics += [Metric(name, float(1 + 0.1 * center + rng.normal(0, 0.03)),
                               "intensity" if name in ("median", "p95") else "1", *place)
                        for name in FEATURES]
            metrics.append(Metric("wasserstein_to_target", abs(0.05 * center + rng.normal(0, .01)),
                                  "R", *place, reference="site01"))
        structure = float(1 - abs(rng.normal(0, 0.02)))
        metrics.append(Metric("ssim_structure", structure, "1", "change", subject, "", scan, "T1w",
                              site))
        checks[scan] = AnatomyCheck(structure > 0.95, (), {}, {})
    return GroupReport(
        tuple(rows), Metrics(tuple(metrics)), QuantileTable(tuple(quantiles)), "tissue_matching",
        {"T1w": "site01"}, links={row.subject: f"sub-{row.subject}.html" for row in rows},
        verdicts={"tissue_matching": checks}, slices=slices, study="simulated")


def measure(folder: Path, scans: int, sites: int) -> dict[str, Any]:
    """Render one report, open it, and return the row of the table."""
    started = time.perf_counter()
    path = render_group_report(folder / f"group-{scans}.html", simulated_report(scans, sites))
    seconds = time.perf_counter() - started
    with open_browser() as browser:
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.goto(path.as_uri())
        page.wait_for_selector("#scatter circle")
        ready = page.evaluate("performance.now()")
        resident, seconds_cpu = page_process()
        page.wait_for_timeout(500)
        paint = page.evaluate(
            "performance.getEntriesByName('first-contentful-paint')[0].startTime")
        heap = page.evaluate("performance.memory.usedJSHeapSize")
        search = page.evaluate("""() => {
            const box = document.getElementById("search"), start = performance.now();
            box.value = "site02";
            box.dispatchEvent(new Event("input", {bubbles: true}));
            document.body.getBoundingClientRect();
            return performance.now() - start;
        }""")
        return dict(zip(COLUMNS, (
            scans, f"{path.stat().st_size / 1e6:.1f}", f"{seconds:.1f}", f"{paint:.0f}",
            f"{ready:.0f}", f"{heap / 1e6:.0f}", f"{resident / 1e6:.0f}",
            f"{seconds_cpu:.1f}", f"{search:.0f}")))


def page_process() -> tuple[int, float]:
    """Return resident bytes and processor seconds of the largest page process started from here."""
    import psutil

    found = [(child.memory_info().rss, sum(child.cpu_times()[:2]))
             for child in psutil.Process().children(recursive=True)
             if "--type=renderer" in child.cmdline()]
    return max(found, default=(0, 0.0))


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="folder of the reports")
    parser.add_argument("--scans", type=int, nargs="+", default=[60, 600])
    parser.add_argument("--sites", type=int, default=8)
    parser.add_argument("--markdown", type=Path, help="replace the section of this page")
    given = parser.parse_args(argv)
    return report_errors(lambda: _run(given))


def _run(given: argparse.Namespace) -> int:
    if find_browser() is None:
        raise UnavailableError("no Chromium and Playwright were found. Install Chromium, and "
                               "Playwright with pip install '.[test]'.")
    given.out.mkdir(parents=True, exist_ok=True)
    rows = printed((measure(given.out, scans, given.sites) for scans in given.scans), "scans")
    if given.markdown:
        head = [" | ".join(COLUMNS), " | ".join("---" for _ in COLUMNS)]
        lines = head + [" | ".join(str(row[name]) for name in COLUMNS) for row in rows]
        put_section(given.markdown, "Report pages", "Command: `python benchmarks/report_pages.py "
                    "OUT --markdown docs/benchmarks.md`\n\n"
                    + "\n".join(f"| {line} |" for line in lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
