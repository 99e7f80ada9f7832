"""Preprocessing of one image, from the stored file to a brain in template space.

The order is `conform`, rough bias correction (`bias`), brain extraction (`brain`), final bias
correction and registration. `transforms` resamples between grids. All functions are pure and take
and return `Volume`. ants is imported inside functions only; `ants_bridge` describes what makes its
results repeatable.
"""
