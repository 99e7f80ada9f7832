"""Simulation of scans: contrast, resolution, noise, residual bias and gain of random scanners."""
