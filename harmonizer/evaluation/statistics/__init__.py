"""Statistics over scans and subjects: intervals, tests, ComBat, confounding."""
