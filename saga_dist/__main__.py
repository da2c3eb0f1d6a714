"""Runs the command line: ``python -m saga_dist``."""

from __future__ import annotations

from saga_dist.cli.main import main

if __name__ == "__main__":
    main()
