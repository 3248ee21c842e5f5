"""The benchmarks. Each compares things in one run, prints tables and keeps JSON."""
