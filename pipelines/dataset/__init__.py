"""From a BIDS folder to scan records: which scans, which site, and on whose word.

`pipelines.dataset.index.collect(settings)` is the one way in; `ScanRecord` values come out, and
`Finding` values for what cannot be used. Nothing here reads voxels or writes into the dataset.
"""
