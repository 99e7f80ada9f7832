"""Digital phantom: simulated subjects and scanners with known truth.

    anatomy (seed, age, sex)  x  scanner (physics, grid, noise)  ->  image and its truth

`make_subject` and `image_of` simulate one scan in memory. `write_dataset`, and the command
`python -m harmonizer.phantom`, write a BIDS dataset and its truth.
"""

from .anatomy import LABELS, Subject, make_deformation, make_subject
from .dataset import DESIGNS, Study, truth_folder, write_dataset
from .physics import PHANTOM_TISSUES, Sequence
from .scanner import (
    MODALITIES,
    SCANNERS,
    UNSEEN,
    Scanner,
    acquire,
    grid_of,
    image_of,
    render,
    scanner_named,
)

__all__ = [
    "DESIGNS", "LABELS", "MODALITIES", "PHANTOM_TISSUES", "SCANNERS", "UNSEEN", "Subject",
    "Scanner", "Sequence", "Study", "acquire", "grid_of", "image_of", "make_deformation",
    "make_subject",
    "render", "scanner_named", "truth_folder", "write_dataset",
]
