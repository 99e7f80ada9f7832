"""Self-contained HTML reports of one subject and of the whole cohort."""
