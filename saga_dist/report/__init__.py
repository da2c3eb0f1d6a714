"""A run one can see into: one self-contained page with curves, retrieval, rollouts and attributes."""
