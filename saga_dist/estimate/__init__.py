"""Estimates memory, compute, time and cost of a run from its configuration, without loading weights."""
