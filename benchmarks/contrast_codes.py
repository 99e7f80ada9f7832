"""CACD: does a code tell the scanner, for phantom scanners of the training and for others.

Small networks are trained on subjects of two phantom scanners at 4 mm. Scans of other subjects on
these and on three other scanners are then encoded, and the scanner of each is the one whose mean
code, over the other subjects, is nearest. The contrast code should tell it, the anatomy code
should not, and the other way round for the subject (nearest over the other scanners).

    python benchmarks/contrast_codes.py WORK --steps 600
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harmonizer.cohort import Cohort, Scan  # noqa: E402
from harmonizer.deep.training.data import VolumeStore  # noqa: E402
from harmonizer.deep.training.loop import train  # noqa: E402
from harmonizer.deep.training.settings import Resources, TrainingSchedule  # noqa: E402
from harmonizer.methods.learned.cacd.backend import Cacd  # noqa: E402
from harmonizer.methods.learned.inference import Inference  # noqa: E402
from harmonizer.phantom.aligned import aligned_image  # noqa: E402
from harmonizer.phantom.anatomy import Subject, make_subject  # noqa: E402
from harmonizer.phantom.scanner import SCANNERS, UNSEEN, Scanner  # noqa: E402
from harmonizer.volume import write_mask, write_volume  # noqa: E402

MM = 4
TRAINING_SCANNERS, TEST_SCANNERS = SCANNERS[:2], (*SCANNERS[2:], UNSEEN)
SUBJECTS = 8  # of the training; and 6 others for the test
TEST_SUBJECTS = 6
SETTINGS = dict(preset="tiny", baseline="none", subjects=4, subjects_per_site=4, views=4,
                encoder_widths=(16, 32, 32), unshuffle=2, contrast=16, anatomy=16,
                learning_rate=2e-3)


def scan_of(folder: Path, subject: Subject, scanner: Scanner) -> Scan:
    """Simulate and write one scan."""
    volume = aligned_image(subject, scanner, resolution_mm=MM)
    name = f"sub-{subject.seed:02d}_ses-{scanner.name}"
    image, mask = folder / f"{name}_T1w.nii.gz", folder / f"{name}_mask.nii.gz"
    write_volume(image, volume)
    write_mask(mask, volume.mask, volume.affine)
    return Scan(f"{name}_T1w", f"{subject.seed:02d}", scanner.name, "T1w", scanner.name, "phantom",
                image, mask)


def fitted(cohort: Cohort, folder: Path, steps: int, seed: int) -> Inference:
    """Train encoder and denoiser."""
    backend = Cacd(Cacd.config_from(SETTINGS))
    model = backend.model_
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model.networks = model.build_networks()
    store = VolumeStore.build(cohort, folder / "volumes", model.multiple)
    task = model.training_task(store, tuple(range(len(cohort))), seed)
    task.identity = {"settings": SETTINGS, "seed": seed}
    outcome = train(task, TrainingSchedule(steps, ema=0.95), Resources(threads=1), folder, seed)
    model.load_weights({name: value.numpy() for name, value in outcome.weights.items()})
    return Inference("cacd", model, None, store.box, store.grid_shape)


def codes_of(inference: Inference, scan: Scan) -> dict[str, np.ndarray]:
    """Return the mean codes of a scan over its slices, of unit length."""
    x = inference.network_input(scan.read())
    inside = x.mask.any(axis=(0, 1))
    means = (code[inside].mean(axis=0) for code in
             inference.model.vectors(x, inference.model.options))
    return {name: mean / np.linalg.norm(mean) for name, mean in zip(("contrast", "anatomy"), means)}


def accuracy(codes: np.ndarray, labels: Sequence[str], groups: Sequence[str]) -> float:
    """Return how often the nearest mean, over scans of other groups, is that of the own label."""
    names, own = np.array(labels), np.array(groups)
    hits = []
    for code, label, group in zip(codes, labels, groups):
        means = {name: codes[(names == name) & (own != group)].mean(axis=0)
                 for name in sorted(set(labels))}
        hits.append(label == min(means, key=lambda name: np.linalg.norm(code - means[name])))
    return float(np.mean(hits))


def main() -> int:
    """Print the accuracies of both codes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    subjects = [make_subject(n, 25 + 4 * n, "FM"[n % 2], float(MM))
                for n in range(SUBJECTS + TEST_SUBJECTS)]
    cohort = Cohort(tuple(scan_of(given.work, subject, TRAINING_SCANNERS[n % 2])
                          for n, subject in enumerate(subjects[:SUBJECTS])))
    inference = fitted(cohort, given.work / "training", given.steps, given.seed)
    for kind, scanners in (("new", TEST_SCANNERS), ("training", TRAINING_SCANNERS)):
        scans = [scan_of(given.work, subject, scanner) for subject in subjects[SUBJECTS:]
                 for scanner in scanners]
        found = [codes_of(inference, scan) for scan in scans]
        sites, names = [scan.site for scan in scans], [scan.subject for scan in scans]
        for code in ("contrast", "anatomy"):
            rows = np.stack([codes[code] for codes in found])
            print(f"{kind} scanners, {code} code: scanner {accuracy(rows, sites, names):.0%} "
                  f"(chance {1 / len(scanners):.0%}), subject {accuracy(rows, names, sites):.0%} "
                  f"(chance {1 / TEST_SUBJECTS:.0%})")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
