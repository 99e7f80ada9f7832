"""Nipype workflows: what is done to a scan, in which order, and how a run is carried out."""
