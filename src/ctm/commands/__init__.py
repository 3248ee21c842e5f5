"""The commands of `ctm`, one file each: `parser()` and `run(settings)`."""
