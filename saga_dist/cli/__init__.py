"""The command line ``saga-dist``: ``main`` and one file per command. Heavy imports happen inside the commands."""
