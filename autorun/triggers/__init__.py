"""What makes autorun look at rows: a save, a schedule, or someone who asks."""
