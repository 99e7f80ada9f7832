"""Contrast of an image as numbers and maps: fit, apply, invert, and carry to the native grid."""
