"""Intensity transforms: estimate them, apply them on any grid, and invert them."""
