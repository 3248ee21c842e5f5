"""The benchmark suite: comparisons made in one run, printed as tables and kept as JSON."""
