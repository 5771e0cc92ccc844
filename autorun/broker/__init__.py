"""A message broker in one SQLite file, as a kombu transport."""
