"""Harmonization methods (backends), their registry, model folders and targets."""
