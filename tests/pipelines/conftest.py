"""Small BIDS trees made from a dict, with images of a few voxels."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

DESCRIPTION = {"Name": "a test", "BIDSVersion": "1.9.0", "DatasetType": "raw"}
MakeTree = Callable[..., Path]


def write_image(path: Path, shape: tuple[int, ...] = (4, 5, 6), affine: Any = None) -> None:
    """A NIfTI file whose voxels depend on its name, so that no two files are alike."""
    seed = sum(path.name.encode()) + len(path.parts)
    data = np.random.default_rng(seed).integers(1, 1000, shape).astype(np.int16)
    nib.save(nib.Nifti1Image(data, np.diag([2, 2, 2, 1.0]) if affine is None else affine), path)


def write(path: Path, content: Any) -> None:
    """None or a shape: an image; a dict: JSON; bytes or text: as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None or isinstance(content, tuple):
        write_image(path, content or (4, 5, 6))
    elif isinstance(content, dict):
        path.write_text(json.dumps(content), encoding="utf-8")
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content, encoding="utf-8")


@pytest.fixture
def make_tree(tmp_path: Path) -> MakeTree:
    """make_tree({'sub-01/anat/sub-01_T1w.nii.gz': None, 'participants.tsv': '...'}) -> folder."""

    def make(tree: Mapping[str, Any], name: str = "bids", **description: Any) -> Path:
        root = tmp_path / name
        write(root / "dataset_description.json", {**DESCRIPTION, **description})
        for path, content in tree.items():
            write(root / path, content)
        return root

    return make
