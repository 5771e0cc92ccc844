"""What the database remembers, and how it is written and read."""
