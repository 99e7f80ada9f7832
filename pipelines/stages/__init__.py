"""The stages of a run: fit, evaluation, reports, methods text, and the order of them."""
