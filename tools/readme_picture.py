"""Draw the picture of the README from the results of `make demo`.

    python tools/readme_picture.py demo/out docs/images/before-after.png

Each column is a scanner. The upper rows are the images of two subjects before harmonization, each
with the intensity window of its own brain, as a viewer shows it; the lower rows are the harmonized
images, all with one window.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

SUBJECTS = 2
AXIAL_SLICE = 0.47  # fraction of the height of the grid
BACKGROUND = "black"


def draw(out: Path, path: Path) -> None:
    """Draw the template-grid images of the first subjects at every scanner."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import nibabel as nib

    before = sorted(out.glob("sub-*/ses-*/anat/*_space-*_desc-preproc_T1w.nii.gz"))
    subjects = sorted({file.parts[-4] for file in before})[:SUBJECTS]
    sessions = sorted({file.parts[-3] for file in before})
    files = {(file.parts[-4], file.parts[-3]): file for file in before}
    rows = [(subject, desc) for desc in ("preproc", "harmonized") for subject in subjects]
    figure, axes = plt.subplots(len(rows), len(sessions), figsize=(5.2, 8.2), facecolor=BACKGROUND)
    common = None
    for row, (subject, desc) in enumerate(rows):
        for column, session in enumerate(sessions):
            file = files[subject, session]
            image = nib.load(file.with_name(file.name.replace("desc-preproc", f"desc-{desc}")))
            mask = nib.load(file.with_name(
                file.name.replace("desc-preproc_T1w", "desc-brain_mask"))).get_fdata() > 0
            data = np.where(mask, image.get_fdata(), 0)
            window = np.percentile(data[mask], 99.8)
            if desc == "harmonized":
                common = window = common or window
            axis = axes[row, column]
            level = round(AXIAL_SLICE * data.shape[2])
            inside = np.argwhere(mask.any(axis=2))
            (left, back), (right, front) = inside.min(axis=0), inside.max(axis=0)
            shown = np.rot90(data[left:right, back:front, level])
            axis.imshow(shown, cmap="gray", vmin=0, vmax=window)
            axis.set_axis_off()
            if row == 0:
                axis.set_title(f"scanner {session.removeprefix('ses-')}", color="white")
    figure.subplots_adjust(0.06, 0.01, 0.99, 0.95, wspace=0.02, hspace=0.02)
    for row, (subject, desc) in enumerate(rows):
        text = f"{subject}, {'before' if desc == 'preproc' else 'harmonized'}"
        box = axes[row, 0].get_position()
        figure.text(0.025, (box.y0 + box.y1) / 2, text, color="white", rotation=90, va="center")
    figure.savefig(path, dpi=90, facecolor=BACKGROUND)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
