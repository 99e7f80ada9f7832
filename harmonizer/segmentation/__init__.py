"""Segmentation of brain and tissues at any contrast, by networks trained on synthesized images."""
