"""CACD: contrastive anatomy-contrast disentanglement (Scholz 2025)."""
