"""BIDS App: command line, settings, datasets, workflows and outputs.

The methods are in the package `harmonizer`, which does not import this one. The entry point is
`pipelines.app.main`.
"""
