"""Methods without training: statistics of the scan are brought to those of the target."""
