"""The command line: `main` and one file per command. Heavy imports happen inside the commands."""
