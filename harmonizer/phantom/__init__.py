"""The digital phantom: travelling people whose truth is known, made offline in seconds.

    anatomy (seed, age, sex)  x  scanner (physics, grid, noise)  ->  image, and its truth

`make_person` and `image_of` are the two words to play with; `write_dataset` writes a whole study
as BIDS with its truth beside it, and so does `python -m harmonizer.phantom`.
"""

from .anatomy import LABELS, Person, make_deformation, make_person
from .dataset import DESIGNS, Study, truth_folder, write_dataset
from .physics import TISSUES, Sequence
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
    shown_by,
)

__all__ = [
    "DESIGNS", "LABELS", "MODALITIES", "SCANNERS", "TISSUES", "UNSEEN", "Person", "Scanner",
    "Sequence", "Study", "acquire", "grid_of", "image_of", "make_deformation", "make_person",
    "render",     "scanner_named", "shown_by", "truth_folder", "write_dataset",
]
