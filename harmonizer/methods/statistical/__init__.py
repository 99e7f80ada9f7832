"""Methods without networks: a scanner is described by a few numbers."""
