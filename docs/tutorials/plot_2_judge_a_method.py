"""
Judge a method, including your own
==================================

A method is better than doing nothing if it brings scans of one subject closer together, removes
the site effect, and preserves biology and anatomy. This tutorial measures three methods on a
traveling subject: one factor, a function of our own, and local tissue matching.
"""

# %%
# Traveling subjects
# ------------------
# Four subjects for the fit, each at one scanner, and another subject for the judgment, at both
# scanners. A method must be judged on subjects that it was not fitted to. One subject keeps this
# tutorial short; a real judgment needs many.

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np

import harmonizer as hz
from harmonizer.evaluation.metrics.image import psnr, ssim
from harmonizer.phantom import SCANNERS, make_subject
from harmonizer.phantom.aligned import aligned_image

scanners = [SCANNERS[0], SCANNERS[2]]
target, source = (scanner.name for scanner in scanners)


def scan(subject, scanner):
    """Return the scan of a subject as a nibabel image."""
    volume = aligned_image(subject, scanner)
    return nib.Nifti1Image(volume.data, volume.affine)


fit_subjects = [make_subject(seed, age=30 + 8 * seed) for seed in range(4)]
fit_images = [scan(subject, scanners[n % 2]) for n, subject in enumerate(fit_subjects)]
fit_sites = [scanners[n % 2].name for n in range(4)]
travelers = [make_subject(11, age=45)]
at_source = [scan(subject, scanners[1]) for subject in travelers]
at_target = [scan(subject, scanners[0]) for subject in travelers]

# %%
# A method of your own
# --------------------
# Any function from an image to an image can be judged. Ours matches median and interquartile range
# of the brain.


class QuartileMatching:
    """Match median and interquartile range of the brain to those of the target site."""

    def fit(self, images, sites):
        """Store the mean quartiles of the target site."""
        self.quartiles = np.mean([self._quartiles(image) for image, site in zip(images, sites)
                                  if site == target], axis=0)
        return self

    def transform(self, image):
        """Return the image with the quartiles of the target."""
        low, middle, high = self._quartiles(image)
        data, (target_low, target_middle, target_high) = image.get_fdata(), self.quartiles
        matched = (data - middle) * (target_high - target_low) / (high - low) + target_middle
        return nib.Nifti1Image(np.where(data > 0, matched, 0).astype(np.float32), image.affine)

    def _quartiles(self, image):
        data = image.get_fdata()
        return np.percentile(data[data > 0], [25, 50, 75])


own = QuartileMatching().fit(fit_images, fit_sites)
tissue = hz.TissueMatching(registered=True, resolution_mm=2, sloppy=True)
tissue.fit(fit_images, sites=fit_sites)


def rescaled(image):
    """Return the image with the median of the target: what every method must improve on."""
    factor = own.quartiles[1] / own._quartiles(image)[1]
    return nib.Nifti1Image((image.get_fdata() * factor).astype(np.float32), image.affine)


methods = {
    "only rescaled": rescaled,
    "quartiles (own)": own.transform,
    "tissue_matching": lambda image: tissue.transform(image, target=target, site=source),
}

# %%
# Against the truth
# -----------------
# The truth is the same subject at the target scanner. Higher is better for both measures.

results = {name: [method(image) for image in at_source] for name, method in methods.items()}
scores = {}
for name, images in results.items():
    rows = []
    for image, truth in zip(images, at_target):
        expected = truth.get_fdata(dtype=np.float32)
        mask = expected > 0
        limits = np.percentile(expected[mask], [0.5, 99.5])
        data_range = float(limits[1] - limits[0])
        found = image.get_fdata(dtype=np.float32)
        rows.append((psnr(found, expected, mask, data_range),
                     ssim(found, expected, mask, data_range)))
    scores[name] = np.mean(rows, axis=0)
    print(f"{name:20s} PSNR {scores[name][0]:6.1f} dB   SSIM {scores[name][1]:.3f}")

# %%
# The figure shows where the errors are. Two numbers for the whole brain cannot correct a contrast
# that differs between tissues.

figure, axes = plt.subplots(1, len(results), figsize=(9, 3.4))
for axis, (name, images) in zip(axes, results.items()):
    difference = images[0].get_fdata() - at_target[0].get_fdata()
    limit = 0.3 * np.percentile(at_target[0].get_fdata(), 99.5)
    middle = difference.shape[2] // 2
    axis.imshow(np.rot90(difference[:, :, middle]), cmap="RdBu_r", vmin=-limit, vmax=limit)
    axis.set(title=name, xticks=[], yticks=[])
figure.suptitle("difference to the truth")
figure.tight_layout()

# %%
# The full evaluation
# -------------------
# `hz.evaluate` needs no truth. It answers whether the site effect is gone, whether subjects are
# identified at the other scanner, whether biology is preserved and whether anatomy is unchanged,
# with tests and intervals. One traveling subject allows no conclusion; the row of a test that
# cannot be estimated states the reason.

before = at_target + at_source
after = at_target + results["tissue_matching"]
found = hz.evaluate(before, after, sites=[target, source], subjects=["1", "1"], target=target,
                    method="tissue_matching", permutations=20)
distance = [row for row in found.metrics if row.measure == "wasserstein_between_sites"
            and row.tissue in ("", "brain")]
for row in distance:
    print(f"distance between the sites, {row.stage}: {row.value:.3f} of the intensity range")

# %%
# What next?
# ----------
# * A method for others: :doc:`/extend/backend` makes a plug-in of a class, and `--compare`
#   evaluates it beside the built-in ones.
# * A measure of your own: :doc:`/extend/metric`.
# * A judgment that holds: subjects and scanners that neither fit nor selection used, several
#   scanners, intervals by subject. :doc:`/benchmarks` has the commands.

assert min(scores[name][0] for name in list(methods)[1:]) > scores["only rescaled"][0]
