"""Compare the range of simulated scanners with real scans.

    python benchmarks/simulated_scanners.py OUT PAIRS [--modality T1w] [--resolution 1]
                                            [--markdown FILE] [--figure FILE]

OUT is an output folder in which the preprocess stage has run; PAIRS a folder of pairs that
`python -m harmonizer.methods.learned.unet prepare` wrote. Both are described by the same numbers
(`scan_card`) on the template grid of that resolution: noise in white and gray matter, differences
of neighbors along each axis (sharpness), contrast and standard deviation of the tissues. The table
gives the 5th, 50th and 95th percentile of both, and how many real scans lie within the range of the
simulated ones.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from command_line import existing_folder, report_errors  # noqa: E402
from sections import put_section  # noqa: E402

from harmonizer.contrast.local_statistics import stack_probabilities  # noqa: E402
from harmonizer.errors import InputError  # noqa: E402
from harmonizer.methods.learned.unet.channels import CONDITIONS  # noqa: E402
from harmonizer.methods.learned.unet.scan_card import CARD_NAMES, scan_card  # noqa: E402
from harmonizer.methods.learned.unet.store import PairStore  # noqa: E402
from harmonizer.methods.statistical import tissue_matching  # noqa: E402
from harmonizer.volume import Volume  # noqa: E402
from pipelines.outputs.collect import find_preprocessed  # noqa: E402

CARD_NUMBERS_IN_TABLE = ("noise_wm_R", "noise_wm_A", "noise_wm_S", "noise_gm_R", "difference_1_R",
         "difference_1_A", "difference_1_S", "difference_2_R", "mean_gm", "mean_csf", "std_gm",
         "std_wm")


def main(argv: list[str] | None = None) -> int:
    """Print the table; write it and the figure where files are named."""
    given = _parser().parse_args(argv)
    real = real_cards(given.out, given.modality, given.resolution)
    simulated = simulated_cards(given.pairs, given.resolution)
    text = table(real, simulated)
    print(text)
    if given.markdown:
        put_section(given.markdown, "The scanner prior and real scans", text)
    if given.figure:
        draw(real, simulated, given.figure)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=existing_folder)
    parser.add_argument("pairs", type=existing_folder)
    parser.add_argument("--modality", default="T1w")
    parser.add_argument("--resolution", type=int, default=1)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--figure", type=Path)
    return parser


def real_cards(out: Path, modality: str, resolution: int) -> np.ndarray:
    """Return the cards of preprocessed scans, shape (scans, numbers)."""
    cards = []
    for item in find_preprocessed(out.resolve(), resolution, (modality,)):
        volume, known = item.scan.read(), item.scan.read_tissues()
        probabilities = stack_probabilities(known, volume) if known else segmented(volume)
        cards.append(scan_card(volume, probabilities))
    if not cards:
        raise InputError(f"{out}: no preprocessed {modality} at {resolution} mm. Run the "
                         "preprocess stage first.")
    return np.array(cards)


def segmented(volume: Volume) -> np.ndarray:
    """Return probabilities (3, I, J, K) of a scan that preprocessing did not segment."""
    return tissue_matching.segment_with(tissue_matching.DEFAULT_SEGMENTER, volume)


def simulated_cards(folder: Path, resolution: int) -> np.ndarray:
    """Return the cards of all scans in a store of pairs, shape (scans, numbers)."""
    store = PairStore(folder)
    n, at = len(CARD_NAMES), CONDITIONS.index("template_mm")
    cards = {tuple(pair.condition[n:2 * n]) for pair in (*store.training, *store.validation)
             if round(float(np.exp(pair.condition[at]))) == resolution}
    if not cards:
        raise InputError(f"{folder}: no pairs at {resolution} mm. Prepare studies of that kind.")
    return np.array(sorted(cards))


def values_of(cards: np.ndarray, name: str) -> np.ndarray:
    """Return one number of every card, in units of the mean of the brightest tissue."""
    values = cards[:, CARD_NAMES.index(name)]
    return np.exp(values) if name.startswith(("noise", "difference", "std")) else values


def table(real: np.ndarray, simulated: np.ndarray) -> str:
    """Return the table as Markdown."""
    lines = [f"{len(real)} real scans, {len(simulated)} simulated ones; relative to the brightest "
             "tissue.", "", "| number | real: 5, 50, 95 % | simulated: 5, 50, 95 % "
             "| real scans within the simulated range |", "|---|---|---|---|"]
    for name in CARD_NUMBERS_IN_TABLE:
        ours, theirs = values_of(real, name), values_of(simulated, name)
        inside = int(((ours >= theirs.min()) & (ours <= theirs.max())).sum())
        cells = [", ".join(f"{v:.3f}" for v in np.percentile(values, [5, 50, 95]))
                 for values in (ours, theirs)]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} | {inside} of {len(real)} |")
    return "\n".join(lines)


def draw(real: np.ndarray, simulated: np.ndarray, path: Path) -> None:
    """Draw histograms of simulated scans, with the real scans as ticks."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(3, 4, figsize=(12, 7))
    for axis, name in zip(axes.ravel(), CARD_NUMBERS_IN_TABLE):
        axis.hist(values_of(simulated, name), 15, color="0.75", density=True)
        axis.plot(values_of(real, name), np.zeros(len(real)), "|", color="C3", markersize=18)
        axis.set_title(name, fontsize=9)
        axis.set_yticks([])
    figure.tight_layout()
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
