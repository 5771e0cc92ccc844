"""The declaration of runners: options and hooks, the registry, and the node of a runner."""
