"""Retrieval: exact metrics on unseen classes, linear probes, embedding files, indexes, search, and the results file."""
