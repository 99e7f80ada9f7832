"""Harmonizer backends: one method a file, one contract for all (`base`), found by `registry`."""
