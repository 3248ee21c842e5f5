"""The parts of `ctm edit`: reading pictures, one file for each kind of edit, writing results."""
