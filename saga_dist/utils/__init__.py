"""Small helpers without knowledge of the method: random keys, atomic files, registries, printable text."""
