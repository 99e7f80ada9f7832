"""
Harmonize a phantom study from Python
=====================================

Four simulated subjects were scanned at one of two scanners. This tutorial learns what the
scanners look like, harmonizes all images to the first scanner, and looks at the result. Real
images take the place of the simulated ones: paths to NIfTI files, or nibabel images.
"""

# %%
# The study
# ---------
# `make_subject` simulates the anatomy of a subject and `aligned_image` its scan, brain only and on
# the grid of the 2 mm template. The two scanners differ in sequence, noise and shading.

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np

import harmonizer as hz
from harmonizer.phantom import SCANNERS, make_subject
from harmonizer.phantom.aligned import aligned_image

scanners = [SCANNERS[0], SCANNERS[2]]
ages = [25.0, 35.0, 45.0, 55.0]
subjects = [make_subject(seed, age=age) for seed, age in enumerate(ages)]
scanner_of = [scanners[number % 2] for number in range(len(subjects))]
sites = [scanner.name for scanner in scanner_of]


def scan(subject, scanner):
    """Return the scan of a subject as a nibabel image."""
    volume = aligned_image(subject, scanner)
    return nib.Nifti1Image(volume.data, volume.affine)


images = [scan(subject, scanner) for subject, scanner in zip(subjects, scanner_of)]
print(list(zip(sites, ages)))

# %%
# Fit and transform
# -----------------
# `registered=True` states that the images are brain only and on the template grid. Without it, each
# image is preprocessed first (bias field, brain mask, registration), which takes about a minute.
# `sloppy=True` is for examples and tests: it replaces the segmentation network by a faster method.
#
# Age is a covariate: its effect on the images is not taken for an effect of the scanner.

target = sites[0]
model = hz.TissueMatching(registered=True, resolution_mm=2, sloppy=True)
model.fit(images, sites=sites, covariates={"age": ages})
harmonized = [model.transform(image, target=target, site=site, covariates={"age": age})
              for image, site, age in zip(images, sites, ages)]

# %%
# The result is a nibabel image on the grid of the input. Its `report` states method, target and
# settings.

report = harmonized[1].report
print({name: report[name] for name in ("HarmonizationMethod", "Target")})

# %%
# Look at the images
# ------------------
# Truth is known for simulated subjects: the same subject at the target scanner.

truth = scan(subjects[1], scanners[0])
shown = {f"before ({sites[1]})": images[1], f"after (to {target})": harmonized[1],
         f"truth ({target})": truth}
figure, axes = plt.subplots(1, 3, figsize=(9, 3.6))
bright = np.percentile(truth.get_fdata(), 99.8)
for axis, (title, image) in zip(axes, shown.items()):
    data = image.get_fdata()
    top = np.percentile(data, 99.8) if title.startswith("before") else bright
    axis.imshow(np.rot90(data[:, :, data.shape[2] // 2]), cmap="gray", vmin=0, vmax=top)
    axis.set(title=title, xticks=[], yticks=[])
figure.tight_layout()

# %%
# The histograms of all subjects, before and after:

figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True)
for axis, group, title in ((axes[0], images, "before"), (axes[1], harmonized, "after")):
    for image, site in zip(group, sites):
        values = image.get_fdata()
        axis.hist(values[values > 0], bins=100, density=True, histtype="step",
                  color="C0" if site == target else "C1")
    axis.set(title=title, xlabel="intensity")
axes[0].set_ylabel("density")
figure.tight_layout()

# %%
# One number: the mean absolute difference to the truth, in the unit of the target scanner, inside
# the brain.

brain = truth.get_fdata() > 0


def error(image):
    """Return the mean absolute difference to the truth."""
    return np.abs(image.get_fdata() - truth.get_fdata())[brain].mean()


scaled = images[1].get_fdata() * np.median(truth.get_fdata()[brain]) \
    / np.median(images[1].get_fdata()[brain])
scaled = nib.Nifti1Image(scaled, truth.affine)
print(f"only rescaled: {error(scaled):.1f}, harmonized: {error(harmonized[1]):.1f}")
assert error(harmonized[1]) < error(scaled)

# %%
# Save the model
# --------------
# A model is a folder without pickled objects. `hz.load` reads it, and `transform` harmonizes later
# scans without a new fit.

from pathlib import Path  # noqa: E402
from tempfile import TemporaryDirectory  # noqa: E402

with TemporaryDirectory() as folder:
    again = hz.load(model.save(Path(folder) / "model"))
print(again, again.sites_)
assert again.sites_ == model.sites_
