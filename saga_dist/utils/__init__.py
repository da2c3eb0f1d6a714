"""General helpers that do not depend on the method: random numbers, atomic file writes, registries, printable text."""
