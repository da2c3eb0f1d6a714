"""Ours against an honest alternative, side by side in one run: medians, ratios, equal results, bars."""
