"""The plumbing of the BIDS App: command line, settings, datasets, workflows. Never the science.

`pipelines` imports `harmonizer`, never the other way; `pipelines.app.main` is the door.
"""
