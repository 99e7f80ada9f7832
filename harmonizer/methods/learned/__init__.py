"""Methods with networks."""
