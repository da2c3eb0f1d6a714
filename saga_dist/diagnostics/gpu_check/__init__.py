"""Measurements of one GPU with random weights: ``saga-dist check-gpu``.

One module per section, each with a function ``measure(check)``; ``sections.py`` lists them. A section runs in a process
of its own (``isolation.py``), which ends at the section's time cap: a section that hangs or runs out of memory loses no
other, and leaves no memory of the GPU taken. On a machine without a GPU the same code runs with a tiny model.
"""
