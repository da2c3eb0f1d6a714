"""Ray: actors, pools, supervision. The only package that imports ray; everything it runs also runs without it."""
