"""What files from elsewhere may ask for: names, numbers, sizes; and what a file is that cannot be read."""
