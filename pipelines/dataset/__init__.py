"""Raw BIDS datasets: images, sites, site sources and covariates.

`pipelines.dataset.index.collect` returns a `ScanRecord` for each usable image and a `Finding` for
each problem. Nothing here reads voxels or writes into the dataset.
"""
