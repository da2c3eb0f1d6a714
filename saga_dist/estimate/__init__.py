"""A run on paper: what it holds, computes and costs, before anything is loaded."""
