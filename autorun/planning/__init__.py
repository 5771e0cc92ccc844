"""From rows to recorded runs: which rows are pending, and a run for each, set-based."""
