"""Runtimes: the parts of a run built from its configuration, in one process or as Ray actors."""
