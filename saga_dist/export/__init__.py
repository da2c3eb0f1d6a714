"""Export of a trained encoder into folders that other software reads."""
