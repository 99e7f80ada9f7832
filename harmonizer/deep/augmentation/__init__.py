"""Augmentations: other contrasts of the same anatomy (`contrast`), and spatial warps (`spatial`).

Each augmentation is a frozen value that is drawn once and gives the same result whenever it is
applied. Images are (N, 1, ...) tensors in 2D or 3D in [-1, 1] with background -1; masks are
(N, 1, ...) with ones in the brain.
"""
