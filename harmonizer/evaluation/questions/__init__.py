"""The four questions of the evaluation: scanner, subject, biology, anatomy."""
