"""Conversion between `Volume` and ANTs images, and reproducible use of ANTs.

antspyx 0.6.3 ignores `ants.registration(random_seed=...)`, and its results vary with more than one
ITK thread even with a seed. Two runs give the same bits only with **one** ITK thread, set before
ants is first imported in the process, **and** with `ANTS_RANDOM_SEED`. Every function of this
package that calls ants sets both, through `ants_module` and `seed_ants`. Subjects are processed in
parallel instead.

ITK uses LPS world coordinates, nibabel and this package RAS: the first two axes change sign.
"""

from __future__ import annotations

import os
import sys
import warnings
from types import ModuleType
from typing import Any

import numpy as np

from ..volume import Volume

__all__ = ["LPS", "set_itk_threads", "seed_ants", "ants_module", "to_ants"]

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # its own inverse: RAS <-> LPS
THREADS_VARIABLE = "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"
SEED_VARIABLE = "ANTS_RANDOM_SEED"


def set_itk_threads(threads: int = 1) -> None:
    """Set the number of ITK threads of this process.

    ITK reads the variable once, when it first needs it. Results are reproducible with one thread
    only. Warns if ants was already imported with another number.

    Parameters
    ----------
    threads : int
        Number of threads.
    """
    wanted = str(int(threads))
    if "ants" in sys.modules and os.environ.get(THREADS_VARIABLE) != wanted:
        warnings.warn(
            f"ants was imported before {THREADS_VARIABLE}={wanted} was set: results may differ. "
            "Call set_itk_threads() first in each process.",
            RuntimeWarning,
            stacklevel=2,
        )
    os.environ[THREADS_VARIABLE] = wanted


def seed_ants(seed: int) -> None:
    """Seed the random sampling of ANTs; call it before each registration, which reads the seed."""
    os.environ[SEED_VARIABLE] = str(int(seed) % (2**31 - 1) + 1)  # 0: by the clock


def ants_module() -> ModuleType:
    """Import ants with one ITK thread, unless the environment sets another number."""
    if "ants" not in sys.modules:
        os.environ.setdefault(THREADS_VARIABLE, "1")
    import ants

    return ants


def to_ants(volume: Volume, data: np.ndarray | None = None) -> Any:
    """Convert a volume to an ANTs image of float32.

    Parameters
    ----------
    volume : Volume
        Grid of the image.
    data : (I, J, K) ndarray, optional
        Voxel values; those of the volume by default.

    Returns
    -------
    ants.ANTsImage
    """
    ants = ants_module()
    affine = LPS @ volume.affine
    spacing = volume.spacing
    array = volume.data if data is None else np.asarray(data)
    return ants.from_numpy(
        np.array(array, dtype=np.float32),
        origin=[float(v) for v in affine[:3, 3]],
        spacing=[float(v) for v in spacing],
        direction=affine[:3, :3] / spacing,
    )
