"""From an image as it left the scanner to a brain in a common space: pure functions on `Volume`.

conform -> bias (rough) -> brain -> bias (final) -> registration; `transforms` moves between grids.
Submodules are imported where they are used, and ants is imported inside functions only:
see `ants_bridge` for what makes its results repeatable.
"""
