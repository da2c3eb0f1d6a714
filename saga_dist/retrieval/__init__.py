"""Retrieval: exact metrics on unseen classes, linear probes, and the results file."""
