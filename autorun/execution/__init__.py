"""A chunk at work: its lease, its rows, the analysis, and what came of it."""
