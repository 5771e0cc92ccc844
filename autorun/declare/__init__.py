"""What a runner is: its options and hooks, the registry, and the node they come to."""
