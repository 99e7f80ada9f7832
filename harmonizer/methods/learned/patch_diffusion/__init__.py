"""Patch diffusion: patch-level anatomy- and style-guided 3D diffusion (Hache 2026)."""
