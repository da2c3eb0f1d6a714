"""Benchmarks of saga_dist against alternative implementations, run in turns: medians, ratios, equality, targets."""
