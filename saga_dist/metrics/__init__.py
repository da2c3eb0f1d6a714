"""Metrics of a run: the JSONL log, and the sinks that it is copied to."""
