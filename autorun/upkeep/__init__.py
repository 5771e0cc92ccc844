"""Self-healing: what every round of upkeep checks and repairs."""
