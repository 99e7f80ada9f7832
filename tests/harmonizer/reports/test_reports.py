"""The HTML files: complete, self-contained, and deaf to what strangers write in their labels."""
from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from harmonizer.evaluation.metrics.distribution import QuantileRow, QuantileTable
from harmonizer.evaluation.table import Metric, Metrics
from harmonizer.reports.charts import on_one_axis
from harmonizer.reports.figures import Figure, ScanImages, density, scan_figures
from harmonizer.reports.group import (
    Failure,
    GroupReport,
    ScanRow,
    render_group_report,
    target_curve,
)
from harmonizer.reports.html import markdown, number_words, relative_link, script_hash
from harmonizer.reports.subject import (
    Check,
    ScanReport,
    SubjectReport,
    needs_a_look,
    render_subject_report,
)
from harmonizer.reports.summary import headline, outliers
from harmonizer.volume import Volume

EVIL = "<script>alert('x')</script>\"><img src=http://evil.example/x.png onerror=alert(1)>"
PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR4nGNgYAAAAAMA"
                         "ASsJTYQAAAAASUVORK5CYII=")
VOID = {"meta", "img", "input", "br", "hr", "link"}


class Page(HTMLParser):
    """What a browser would see: tags in balance, every address, every text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def read(path) -> Page:
    page = Page(path.read_text(encoding="utf-8"))
    assert page.open == []
    return page


def assert_self_contained(page: Page, scripts: int = 0) -> None:
    """Nothing to load, and to run nothing but the script that the policy knows by its hash; links
    leave the file only on a click."""
    assert page.all("script") == [{}] * scripts
    assert not page.all("link") and not page.all("iframe")
    assert all(re.match("data:image/(png|webp);base64,", image["src"]) for image in page.all("img"))
    assert all(image["alt"] for image in page.all("img"))
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert not [attrs for attrs in page.all("a") if attrs["href"].startswith("javascript:")]
    policy = [attrs["content"] for attrs in page.all("meta") if "content" in attrs]
    assert any("default-src 'none'" in content for content in policy)


def scan_report(name: str = "sub-01_T1w", **changes) -> ScanReport:
    figure = Figure("Flicker", "Two frames.", "A picture", (PIXEL, PIXEL), ("before", "after"))
    content = dict(facts={"Site": "siteA"}, figures=(figure,),
                   checks=(Check("Mask volume", 1.4321, "L", "0.9 to 2"),),
                   provenance={"Backend": "moment_matching"}, timing={"N4": 2.0, "mask": 3.5})
    return ScanReport(name, **{**content, **changes})


def test_subject_report_shows_every_scan_and_loads_nothing(tmp_path):
    scans = (scan_report("sub-01_run-1_T1w"),
             scan_report("sub-01_run-2_T1w", warnings=("Tilted.",)),
             ScanReport("sub-01_run-3_T1w", error="12 NaN voxels.", remedy="Repair the image."))
    path = render_subject_report(tmp_path / "sub-01.html", SubjectReport(
        "01", scans, "# How\nWith **N4**.", {"ants": "0.6"}, group_report="group_report.html"))
    page = read(path)
    assert_self_contained(page, scripts=1)
    ids = [attrs["id"] for attrs in page.all("h2")]
    assert ids[:3] == [scan.scan_id for scan in scans]
    assert {f"#{name}" for name in ids} <= {attrs["href"] for attrs in page.all("a")}
    assert len(page.all("img")) == 4
    for words in ("3 scans, 1 not finished, 2 with warnings", "1.43 L", "Tilted.", "5.5 s",
                  "12 NaN voxels.", "Repair the image.", "left is on the left", "0.6"):
        assert words in page.text, words
    assert "group_report.html" in [attrs["href"] for attrs in page.all("a")]


def test_flicker_controls_belong_to_their_own_figure(tmp_path):
    scans = (scan_report("a"), scan_report("b"))
    page = read(render_subject_report(tmp_path / "s.html", SubjectReport("1", scans)))
    identities = [attrs["id"] for attrs in page.all("input")]
    assert len(identities) == len(set(identities)) == 6
    assert sorted(attrs["for"] for attrs in page.all("label")) == sorted(identities)
    assert len({attrs["name"] for attrs in page.all("input")}) == 2


def test_a_figure_of_three_frames_has_a_button_for_each(tmp_path):
    figure = Figure("Tissues", "Three.", "A picture", (PIXEL,) * 3, ("fluid", "gray", "white"))
    page = read(render_subject_report(tmp_path / "s.html", SubjectReport(
        "1", (scan_report(figures=(figure,)),))))
    buttons = page.all("input")
    assert ["checked" in attrs for attrs in buttons] == [True, False, False]
    assert len({attrs["name"] for attrs in buttons}) == 1
    assert [attrs["for"] for attrs in page.all("label")] == [attrs["id"] for attrs in buttons]
    assert [attrs.get("class") for attrs in page.all("figure")] == ["choice"]


def test_subject_report_escapes_every_text(tmp_path):
    figure = Figure(EVIL, EVIL, EVIL, (PIXEL, PIXEL), (EVIL, EVIL))
    scan = ScanReport(EVIL, {EVIL: EVIL}, (figure,), (Check(EVIL, 1.0, EVIL, EVIL, True),), (EVIL,),
                      {EVIL: EVIL}, {EVIL: 1.0}, EVIL, EVIL)
    path = render_subject_report(tmp_path / "s.html", SubjectReport(
        EVIL, (scan,), f"# {EVIL}\n\n{EVIL}\n\n- **{EVIL}**", {EVIL: EVIL}, {EVIL: EVIL},
        "javascript:alert(1)"))
    page = read(path)
    assert_self_contained(page, scripts=1)
    assert page.text.count("<script>alert('x')</script>") >= 20
    links = {attrs["href"] for attrs in page.all("a") if not attrs["href"].startswith("#")}
    assert links == {"javascript%3Aalert%281%29",  # a file name now, not a script
                     "http://evil.example/x.png"}  # the methods text may name web pages


def test_warnings_and_flags_ask_for_a_look():
    assert not needs_a_look(scan_report())
    assert needs_a_look(scan_report(warnings=("x",)))
    assert needs_a_look(scan_report(checks=(Check("a", 0.1, flagged=True),)))
    assert needs_a_look(ScanReport("x", error="stopped"))


@pytest.fixture(scope="module")
def images() -> ScanImages:
    """A small ball brain on both grids, harmonized by a curve."""
    shape = (24, 28, 22)
    center = (np.array(shape) - 1).reshape(3, 1, 1, 1) / 2
    radius = np.sqrt(np.sum((np.indices(shape) - center) ** 2, axis=0))
    mask = radius < 9
    tissues = np.where(mask, np.select([radius < 4, radius < 7], [3, 2], 1), 0).astype(np.uint8)
    data = (tissues * 100 + np.random.default_rng(0).normal(0, 5, shape)) * (radius < 11)
    affine = np.diag([-3.0, 3.0, 3.0, 1.0])
    volume = Volume(data, affine, mask)
    field = 1 + 0.01 * np.indices(shape)[0]
    band = np.sort(np.random.default_rng(1).normal(40, 10, (3, 200)), axis=1)
    return ScanImages(volume, field, volume, volume, tissues, volume.with_data(data * 0.2), tissues,
                      {"brain": band, "GM": band})


@pytest.fixture(scope="module")
def figures(images) -> tuple[Figure, ...]:
    return scan_figures(images, "siteA")


def test_figures_of_a_scan_are_all_there_and_frames_fit(figures):
    from PIL import Image

    assert [figure.title for figure in figures] == [
        "Brain mask", "Bias field", "Bias correction", "Registration: template edges",
        "Registration: scan and template", "Before and after harmonization", "What changed",
        "Histograms"]
    for figure in figures:
        sizes = {Image.open(io.BytesIO(frame)).size for frame in figure.frames}
        assert len(sizes) == 1  # frames that flicker must lie on each other
        assert len(figure.labels) == (len(figure.frames) if len(figure.frames) > 1 else 0)
        assert figure.alt and figure.caption


def test_a_gain_is_shown_away_and_said(figures):
    before_after, difference = figures[5:7]
    assert "multiplied by 0.2" in before_after.caption
    assert "0.0 % on average" in difference.caption  # a pure gain changes nothing else


def test_figures_are_the_same_bits_twice_and_need_no_array(images, figures):
    assert scan_figures(ScanImages()) == ()
    only = ScanImages(native=images.native)
    assert scan_figures(only) == figures[:1]


def test_the_mask_outline_is_drawn_in_red(figures):
    from PIL import Image

    frame = figures[0].frames[0]
    pixels = np.asarray(Image.open(io.BytesIO(frame)).convert("RGB")).astype(int)
    red = (pixels[..., 0] - pixels[..., 1:].max(axis=-1)) > 80
    assert 300 < red.sum() < 0.1 * red.size


def test_density_is_a_density_and_finds_the_mode():
    from scipy import stats

    from harmonizer.evaluation.metrics.distribution import LEVELS

    edges = np.linspace(-6, 6, 121)
    found = density(stats.norm.ppf(LEVELS), edges)
    assert found.sum() * 0.1 == pytest.approx(1.0, abs=0.01)
    middle = (edges[1:] + edges[:-1]) / 2
    inner = np.abs(middle) < 2
    assert found[inner] == pytest.approx(stats.norm.pdf(middle[inner]), abs=0.02)


SITES = {"A": 100.0, "B": 160.0, EVIL: 220.0}


def tables(after: bool = True) -> tuple[Metrics, QuantileTable, tuple[ScanRow, ...]]:
    """Three sites of three scans; after, all have the quantile function of site A."""
    quantiles, metrics, scans = [], [], []
    names = sorted(SITES)
    for number in range(9):
        site = names[number % 3]
        scan, subject = f"sub-{number}_T1w", str(number)
        scans.append(ScanRow(scan, subject, site, "T1w", 20.0 + 20 * (number % 3) + number, "F"))
        for stage in ("before", "after") if after else ("before",):
            level = SITES[site] if stage == "before" else SITES["A"]
            quantiles.append(QuantileRow(scan, subject, site, "T1w", stage, "brain",
                                         level + np.linspace(-30, 30, 200) ** 3 / 900))
            for measure in ("median", "mean_gm"):
                metrics.append(Metric(measure, level + number, "intensity", stage, subject, "",
                                      scan, "T1w", site))
            metrics.append(Metric("wasserstein_to_target", abs(level - 100) / 60, "R", stage,
                                  subject, "", scan, "T1w", site, reference="A"))
    pairs = {"before": 1.0, "rescaled": 0.05, "after": 0.02} if after else {"before": 1.0}
    for stage, value in pairs.items():
        metrics += [Metric("wasserstein_between_sites", value, "R", stage, modality="T1w", site=a,
                           reference=b) for a, b in zip(names, names[1:] + names[:1])]
        metrics.append(Metric("site_eta_squared", 0.5, "1", stage, modality="T1w",
                              reference="median"))
    return Metrics(tuple(metrics)), QuantileTable(tuple(quantiles)), tuple(scans)


@pytest.fixture(scope="module")
def group_page(tmp_path_factory) -> Page:
    metrics, quantiles, scans = tables()
    report = GroupReport(scans, metrics, quantiles, "moment_matching", {"T1w": "A"},
                         failures=(Failure(EVIL, "bias", EVIL, "Look at the image."),),
                         links={"0": "sub-0.html", EVIL: EVIL}, methods="All *well*.")
    return read(render_group_report(tmp_path_factory.mktemp("group") / "group_report.html", report))


def test_group_report_is_self_contained_and_escaped(group_page):
    assert_self_contained(group_page, scripts=1)
    assert group_page.text.count("<script>alert('x')</script>") >= 5


def test_the_policy_knows_the_script_by_its_hash_and_no_other(tmp_path):
    import hashlib

    text = render_group_report(tmp_path / "g.html", GroupReport(
        (), Metrics(), QuantileTable(), "none", {"T1w": "A"})).read_text(encoding="utf-8")
    code = re.search(r"<script>(.*?)</script>", text, re.DOTALL)[1]
    known = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    assert f"script-src 'sha256-{known}'" in text and "unsafe-inline' 's" not in text
    assert "http" not in code and "innerHTML" not in code
    subject = render_subject_report(tmp_path / "s.html", SubjectReport("1", ()))
    text = subject.read_text(encoding="utf-8")
    code = re.search(r"<script>(.*?)</script>", text, re.DOTALL)[1]
    assert script_hash(code) in text and "innerHTML" not in code


def test_group_report_tells_sites_confounding_distances_and_failures(group_page):
    text = group_page.text
    for words in ("9 scans of 9 subjects from 3 sites", "1 failure", "1 not finished.",
                  "Age differs between sites", "histograms is 0.020 R",
                  "deviation alone reaches 0.050 R", "Distance between sites by tissue",
                  "Look at the image.", "Outliers", "All well."):
        assert words in text, words
    assert len(group_page.all("img")) == 5  # all sites, two frames site by site, maps, scans
    assert "sub-0.html" in [attrs["href"] for attrs in group_page.all("a")]


def test_noise_before_harmonization_is_shown_for_the_method(tmp_path):
    """Noise is measured once for all methods, so its rows before harmonization name none."""
    metrics, quantiles, scans = tables()
    rows = [replace(row, backend="x", target="A") for row in metrics]
    for stage, backend, value in (("before", "", 0.02), ("after", "x", 0.01)):
        rows += [Metric("noise_wm", value, "1", stage, scan.subject, "", scan.scan_id, "T1w",
                        scan.site, "brain", backend=backend) for scan in scans]
        rows.append(Metric("site_eta_squared", 40 * value, "1", stage, modality="T1w",
                           reference="noise_wm", backend=backend))
    page = render_group_report(tmp_path / "g.html", GroupReport(
        scans, Metrics(tuple(rows)), quantiles, "x", {"T1w": "A"})).read_text(encoding="utf-8")
    effects = page.partition("Site effect on each feature")[2].partition("</table>")[0]
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", effects.partition("noise_wm")[2])
    assert cells[:2] == ["0.8", "0.4"]
    sites = page.partition("Features per site")[2].partition("</table>")[0]
    assert "0.02 \u00b1 0" in sites and "0.01 \u00b1 0" in sites


def test_what_cannot_be_told_comes_before_every_result(tmp_path):
    metrics, quantiles, scans = tables()
    labeled = tuple(replace(scan, covariates={"diagnosis": "HC" if scan.site == "A" else "MS"})
                 for scan in scans)
    page = read(render_group_report(tmp_path / "g.html", GroupReport(
        labeled, metrics, quantiles, "x", {"T1w": "A"}, covariates=("diagnosis",),
        failures=(Failure("sub-1", "read", "No."),), critical_warnings=("Sixty years apart.",),
        warnings=("Something less.",), fit=("T1w, covariate age: modeled (number).",))))
    text = page.text
    first = text.index("Diagnosis cannot be told from site")
    assert first < text.index("Sixty years apart.") < text.index("1 not finished")
    assert first < text.index("Something less.") < text.index("fell from 1.000 R")
    assert "Confounding of the site with age, sex and diagnosis" in text
    assert "covariate age: modeled (number)" in text and "No difference of" not in text


def test_rated_scans_are_listed_as_excluded(tmp_path):
    metrics, quantiles, scans = tables()
    page = read(render_group_report(tmp_path / "g.html", GroupReport(
        scans[1:], metrics, quantiles, "x", {"T1w": "A"},
        excluded={scans[0].scan_id: EVIL, "sub-x_T1w": ""})))
    start = page.text.index("Scans rated “exclude”")
    assert page.text.index(scans[0].scan_id, start) < page.text.index("sub-x_T1wn/a", start)


def test_confounding_table_counts_each_traveling_subject_once(tmp_path):
    scans = tuple(ScanRow(f"{subject}{site}", subject, site, age=30.0 + int(subject), sex="F")
                  for subject in "0123" for site in "ABC")
    page = render_group_report(tmp_path / "g.html", GroupReport(
        scans, Metrics(), QuantileTable(), "none", {"T1w": "A"})).read_text(encoding="utf-8")
    table = page.partition("Confounding of the site")[2].partition("</table>")[0]
    numbers = re.findall(r'<td class="number">(\d+)</td><td class="number">(\d+)</td></tr>', table)
    assert numbers == [("4", "0"), ("4", "0")], table


def test_rounding_errors_are_shown_as_zero():
    assert [number_words(value) for value in (-2e-17, 3e-16, -0.5)] == ["0", "0", "-0.5"]


def test_group_report_before_harmonization_and_of_one_site(tmp_path):
    metrics, quantiles, scans = tables(after=False)
    page = read(render_group_report(tmp_path / "g.html", GroupReport(
        scans, metrics, quantiles, "none", {"T1w": "A"})))
    assert "No harmonized image was evaluated" in page.text
    one = tuple(scan for scan in scans if scan.site == "A")
    page = read(render_group_report(tmp_path / "one.html", GroupReport(
        one, Metrics(tuple(row for row in metrics if row.site == "A" and row.scan)),
        quantiles.select(site="A"), "none", {"T1w": "A"})))
    assert "Only one site was evaluated" in page.text


def test_group_report_of_nothing_but_failures(tmp_path):
    page = read(render_group_report(tmp_path / "g.html", GroupReport(
        (), Metrics(), QuantileTable(), "none", {"T1w": "A"},
        failures=(Failure("sub-1", "read", "No."),))))
    assert "0 scans of 0 subjects from 0 sites" in page.text
    assert "No." in page.text


def test_headline_does_not_praise_what_rescaling_does_alone():
    metrics, _, _ = tables()
    worse = Metrics(tuple(Metric("wasserstein_between_sites", value, "R", stage, modality="T1w",
                                 site="A", reference="B")
                          for stage, value in (("before", 1.0), ("rescaled", 0.1), ("after", 0.2))))
    assert "no better than linear rescaling" in headline(worse, "x", "A")
    assert "no better" not in headline(metrics, "x", "A")


def test_headline_states_no_number_in_units_of_uncalibrated_images():
    metrics, _, _ = tables()
    raw = Metrics(tuple(replace(row, value=64.31) if (row.measure, row.stage) == (
        "wasserstein_between_sites", "before") else row for row in metrics))
    assert headline(raw, "x", "A") == headline(metrics, "x", "A")
    assert "64" not in headline(raw, "x", "A")


def test_sites_in_different_units_share_an_axis_only_after_scaling():
    target = np.linspace(0, 100, 200)
    alike = {"A": target, "B": 1.5 * target}
    title, same = on_one_axis("before", alike, target)
    assert title == "before" and same["B"][-1] == 150
    title, scaled = on_one_axis("before", {**alike, "C": 64 * target}, target)
    assert title == "before, each site in its own unit"
    assert [mean[-1] for mean in scaled.values()] == pytest.approx([100, 100, 100])


def test_headline_warns_of_faded_images():
    metrics, _, _ = tables()
    ratios = Metrics((Metric("range_ratio", 0.25, stage="after"),))
    assert "have 25 % of the target's intensity range" in headline(metrics + ratios, "x", "A")
    kept = Metrics((Metric("range_ratio", 0.97, stage="after"),))
    assert "Caution" not in headline(metrics + kept, "x", "A")


def test_outliers_are_on_the_bad_side_and_far_enough_to_matter():
    def row(number: int, value: float, measure: str = "wasserstein_to_target",
            stage: str = "after") -> Metric:
        return Metric(measure, value, stage=stage, scan=str(number), site="A")

    flat = [row(n, 0.020 + 0.001 * n) for n in range(9)]
    assert [o.scan for o in outliers(Metrics((*flat, row(9, 0.5))))] == ["9"]
    assert outliers(Metrics((*flat, row(9, 0.0)))) == []  # nearer than the rest is no fault
    tiny = [row(n, 1e-6 * n) for n in range(9)]
    assert outliers(Metrics((*tiny, row(9, 1e-3)))) == []
    edges = [row(n, 0.999, "gradient_agreement", "change") for n in range(9)]
    assert len(outliers(Metrics((*edges, row(9, 0.8, "gradient_agreement", "change"))))) == 1
    assert outliers(Metrics((*flat[:5], row(9, 0.5)))) == []  # too few to tell


def test_target_curve_is_the_site_before_or_what_became_of_all():
    _, quantiles, _ = tables()
    assert target_curve(quantiles, "B").mean() == pytest.approx(160.0)
    assert target_curve(quantiles, "nowhere").mean() == pytest.approx(100.0)


def test_markdown_knows_little_and_trusts_nothing():
    html = str(markdown("# Title\nText with **bold**, *soft*, `x < 1` and "
                        "https://doi.org/10.1/x.\n\n"
                        "- one\n- [two](https://a.example/b)\n\n<b>raw</b> [no](javascript:x)"))
    assert "<h3>Title</h3>" in html and "<strong>bold</strong>" in html
    assert "<em>soft</em>" in html and "<code>x &lt; 1</code>" in html
    assert '<a href="https://doi.org/10.1/x">https://doi.org/10.1/x</a>.' in html
    assert '<li><a href="https://a.example/b">two</a></li>' in html
    assert "&lt;b&gt;raw&lt;/b&gt;" in html and "[no](javascript:x)" in html
    assert set(re.findall(r"<(\w+)", html)) == {"h3", "p", "strong", "em", "code", "a", "ul", "li"}


def test_numbers_and_links_as_text():
    numbers = (None, float("nan"), 0.0, 0.12345, 12345.6, 1e-9, -1e-9)
    assert [number_words(number) for number in numbers] == ["n/a", "n/a", "0", "0.123", "12346",
                                                            "< 0.0001", "> -0.0001"]
    assert relative_link("sub-01/figures/a b.html") == "sub-01/figures/a%20b.html"
    assert relative_link("javascript:alert(1)").startswith("javascript%3Aalert")


def test_no_heavy_import_comes_with_the_package():
    import subprocess
    import sys

    code = ("import sys, harmonizer.reports.group, harmonizer.reports.subject, "
            "harmonizer.evaluation.paired_metrics; "
            "print([m for m in ('torch','matplotlib','skimage','jinja2','pandas','ants') "
            "if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_group_report_tells_the_referees_answers_and_names_flagged_scans(tmp_path):
    from harmonizer.evaluation.questions.anatomy_limits import AnatomyCheck
    from harmonizer.evaluation.statistics.resampling import Statistics

    metrics, quantiles, scans = tables()
    verdicts = {"moment_matching": {"sub-1_T1w": AnatomyCheck(False, (EVIL,), {}, {}),
                                    "sub-2_T1w": AnatomyCheck(True, (), {}, {})}}
    report = GroupReport(scans, metrics, quantiles, "moment_matching", {"T1w": "A"},
                         statistics=Statistics(), verdicts=verdicts)
    page = read(render_group_report(tmp_path / "group.html", report))
    assert_self_contained(page, scripts=1)
    title = "Images flagged by the anatomy guard"
    for words in ("Is the site effect removed?", "It cannot be told", title):
        assert words in page.text
    part = page.text[page.text.index(title):]
    assert "sub-1_T1w" in part[:400] and "sub-2_T1w" not in part[:400]


def test_group_report_without_statistics_answers_nothing(group_page):
    assert "Is the site effect removed?" not in group_page.text


def test_each_modality_has_its_own_target(tmp_path):
    """The site with most scans is another for each; the FLAIR's is no site of the T1w."""
    from harmonizer.evaluation.statistics.resampling import Statistics

    metrics, quantiles, scans = tables()
    both = Metrics((*metrics, *(replace(row, modality="FLAIR") for row in metrics)))
    report = GroupReport(scans, both, quantiles, "moment_matching", {"T1w": "A", "FLAIR": "B"},
                         statistics=Statistics())
    text = read(render_group_report(tmp_path / "group.html", report)).text
    assert "target A (T1w); B (FLAIR)" in text
    assert "A target of T1w" in text and "B target of FLAIR" in text
    assert "moment_matching to A." in text and "moment_matching to B." in text
