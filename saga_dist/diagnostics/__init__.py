"""Measurements behind ``saga-dist evidence``: probes, loss gradients and attention of one run, and the oracle screen.

``measure`` applies every diagnostic to a run directory (``evidence show``). ``screen`` measures, on configurations of
the built-in birds, how much the MLLM's gradient could gain at best (``evidence screen``).
"""
