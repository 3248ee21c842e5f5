"""Bounds for files from elsewhere: the names, numbers and sizes they may ask for, and what a file is that cannot be read."""
