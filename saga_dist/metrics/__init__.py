"""Metrics of a run: the JSONL log, and the sinks that receive a copy of it."""
