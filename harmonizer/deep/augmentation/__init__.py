"""Views of an image: other contrasts of the same anatomy, and the same contrast elsewhere.

Each change is a small frozen value that was drawn once, can be printed as JSON, and applied again
to any image with the same result: randomness is a value. Images are (N, 1, ...) tensors in 2D or
3D with intensities in [-1, 1] and background -1, masks (N, 1, ...) with ones in the brain.
"""
