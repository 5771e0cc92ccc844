"""Triggers of planning: saved rows and schedules, and how they reach a worker."""
