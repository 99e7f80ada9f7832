"""Evaluation of harmonization: site effect, subject identity, biology and anatomy."""
