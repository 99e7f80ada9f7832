"""The derivative dataset: file names, sidecars, dataset-level files, logs, and reading them.

Later stages read everything from the output folder, so that cluster jobs share nothing else and the
group level needs no raw data.
"""
