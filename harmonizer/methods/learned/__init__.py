"""Methods with networks, and the fitting, validation, inference and persistence they share."""
