"""Brain and tissues at any contrast: a small network that was trained on synthesised images."""
