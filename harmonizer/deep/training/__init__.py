"""Training: players, the loop that lets them play, and the data they play with.

A diffusion model is one player, a GAN several. The loop knows players, not methods; methods know
their losses, not the loop. docs/architecture-learning.md draws it.
"""
