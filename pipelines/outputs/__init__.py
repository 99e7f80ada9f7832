"""The derivative dataset: names, sidecars, dataset files, logs, and reading it all back.

Everything a later stage needs is read from the output folder itself, so that jobs on a cluster
share nothing else and the group level needs no raw data.
"""
