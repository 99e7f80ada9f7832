"""Structures from which images are synthesized, and the classes of the segmentation networks.

Label maps use FreeSurfer's labels for the brain and labels from 502 for the rest of the head. Left
and right form one structure, because they have the same tissue and the networks do not distinguish
sides. `CLASSES` are the network's outputs; `TISSUE_CLASSES` assigns them to tissues.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from ..errors import InputError

__all__ = ["Structure", "STRUCTURES", "CLASSES", "BRAIN_CLASSES", "TISSUE_CLASSES",
           "index_labels", "class_table"]

CLASSES = (
    "outside",
    "sulcal CSF",
    "ventricles",
    "cortex",
    "cerebral white matter",
    "deep gray matter",
    "cerebellar cortex",
    "cerebellar white matter",
    "brain stem",
)
BRAIN_CLASSES = ("outside", "brain")

TISSUE_CLASSES: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {"CSF": (1, 2), "GM": (3, 5, 6), "WM": (4, 7, 8)}
)


@dataclass(frozen=True)
class Structure:
    """One structure of the head.

    Attributes
    ----------
    name : str
        Anatomical name.
    labels : tuple of int
        Labels in a label map, left and right.
    target : int
        Index in `CLASSES` of the class to predict.
    looks : tuple of float
        Typical intensity, 0 to 1, in T1w, T2w, FLAIR and PDw images. Familiar contrasts are drawn
        around these values.
    """

    name: str
    labels: tuple[int, ...]
    target: int
    looks: tuple[float, float, float, float]


STRUCTURES = (
    Structure("air", (0,), 0, (0.0, 0.0, 0.0, 0.0)),
    Structure("cerebral white matter", (2, 41), 4, (0.85, 0.38, 0.48, 0.62)),
    Structure("cerebral cortex", (3, 42), 3, (0.58, 0.55, 0.62, 0.80)),
    Structure("lateral ventricle", (4, 43, 5, 44, 72), 2, (0.16, 0.95, 0.10, 0.75)),
    Structure("cerebellar white matter", (7, 46), 7, (0.85, 0.38, 0.48, 0.62)),
    Structure("cerebellar cortex", (8, 47), 6, (0.60, 0.52, 0.60, 0.78)),
    Structure("thalamus", (10, 49), 5, (0.70, 0.45, 0.54, 0.72)),
    Structure("caudate", (11, 50), 5, (0.62, 0.50, 0.60, 0.78)),
    Structure("putamen", (12, 51), 5, (0.66, 0.46, 0.57, 0.76)),
    Structure("pallidum", (13, 52), 5, (0.77, 0.33, 0.48, 0.62)),
    Structure("third ventricle", (14,), 2, (0.16, 0.95, 0.12, 0.75)),
    Structure("fourth ventricle", (15,), 2, (0.16, 0.95, 0.12, 0.75)),
    Structure("brain stem", (16,), 8, (0.80, 0.40, 0.50, 0.64)),
    Structure("hippocampus", (17, 53), 5, (0.57, 0.56, 0.64, 0.80)),
    Structure("amygdala", (18, 54), 5, (0.57, 0.56, 0.64, 0.80)),
    Structure("sulcal CSF", (24,), 1, (0.16, 0.95, 0.12, 0.75)),
    Structure("accumbens", (26, 58), 5, (0.62, 0.50, 0.60, 0.78)),
    Structure("ventral diencephalon", (28, 60), 8, (0.78, 0.38, 0.50, 0.64)),
    Structure("white matter lesion", (25, 57), 4, (0.65, 0.70, 0.90, 0.80)),
    Structure("vessel", (30, 62), 5, (0.40, 0.60, 0.40, 0.60)),
    Structure("optic chiasm", (85,), 8, (0.75, 0.42, 0.50, 0.64)),
    Structure("choroid plexus", (136, 163, 137, 164), 2, (0.35, 0.75, 0.45, 0.70)),
    Structure("neck fluid and vessels", (502,), 0, (0.40, 0.60, 0.40, 0.60)),
    Structure("eye", (506,), 0, (0.22, 0.95, 0.15, 0.70)),
    Structure("soft tissue", (507,), 0, (0.55, 0.35, 0.45, 0.50)),
    Structure("eye muscle", (508,), 0, (0.50, 0.35, 0.45, 0.50)),
    Structure("nose", (509,), 0, (0.50, 0.40, 0.45, 0.50)),
    Structure("skin and fat", (511,), 0, (0.85, 0.60, 0.65, 0.70)),
    Structure("spinal cord", (512,), 0, (0.70, 0.42, 0.48, 0.60)),
    Structure("dura and sinus", (514,), 0, (0.40, 0.35, 0.35, 0.45)),
    Structure("bone", (515,), 0, (0.12, 0.12, 0.12, 0.14)),
    Structure("marrow", (516,), 0, (0.65, 0.45, 0.45, 0.50)),
    Structure("optic nerve", (530,), 0, (0.65, 0.42, 0.48, 0.60)),
)

SULCAL_CLASS = 1  # in CLASSES; the later ones are what lies within the brain
SOFT_TISSUE = 24  # one label for muscle, fat and fascia: it is broken up where images are made
LESION = 18
WHITE_MATTER = 1
CORTEX = 2
VENTRICLE = 3
SULCAL_CSF = 15
FIRST_OUTSIDE = 22  # this structure and the later ones lie outside the brain, as does air


def index_labels(labels: np.ndarray, source: str = "the label map") -> np.ndarray:
    """Convert FreeSurfer labels to indices in `STRUCTURES`.

    Parameters
    ----------
    labels : (I, J, K) int ndarray
        Label map.
    source : str
        Name of the map for error messages.

    Returns
    -------
    (I, J, K) uint8 ndarray

    Raises
    ------
    InputError
        If a label is negative or unknown, so that the map follows another protocol.
    """
    table = {label: i for i, s in enumerate(STRUCTURES) for label in s.labels}
    if labels.min() < 0:
        raise InputError(f"{source}: holds negative labels, so it is no label map.")
    counts = np.bincount(np.ravel(labels))
    unknown = [int(x) for x in np.flatnonzero(counts) if int(x) not in table]
    if unknown:
        raise InputError(
            f"{source}: labels {unknown[:8]} are not known. Expected FreeSurfer's numbers for the "
            "brain and 502-530 for the rest of the head, as in SynthSeg's training label maps."
        )
    lookup = np.array([table.get(x, 0) for x in range(len(counts))], dtype=np.uint8)
    return lookup[labels]


def class_table() -> np.ndarray:
    """Return the class of each structure as a (structures,) uint8 lookup table."""
    return np.array([s.target for s in STRUCTURES], dtype=np.uint8)
