"""The Python interface for notebooks: estimators, preprocessing, segmentation, evaluation.

Its names are exported by `harmonizer` itself: ``import harmonizer as hz``.
"""
