"""Executing a chunk: its lease, its rows, the analysis and the results."""
