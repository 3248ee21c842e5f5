"""The parts of `ctm edit`: pictures in, one file for each kind of edit, pictures out."""
