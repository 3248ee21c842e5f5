"""The commands of `ctm`, one file for each. Each has `parser()` and `run(settings)`."""
