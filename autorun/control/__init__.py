"""Decisions people make about runs and runners: retry, cancel, ignore, pause and resume."""
