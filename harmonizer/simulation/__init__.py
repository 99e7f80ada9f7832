"""Simulate what scanners do to an anatomy: contrast, resolution, noise, residual bias, gain."""
