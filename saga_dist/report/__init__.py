"""The report of a run: one self-contained HTML page with results, curves, retrieval, attributes and rollouts."""
