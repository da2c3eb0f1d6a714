"""Runtimes: build the parts of a run from its configuration, in one process or as Ray actors."""
