"""How it is told: self-contained HTML reports of one participant and of the whole cohort."""
