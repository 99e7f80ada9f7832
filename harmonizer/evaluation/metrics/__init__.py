"""Metrics of one image, of a pair of images, and of tissue volumes."""
