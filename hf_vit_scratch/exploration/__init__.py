"""What a size costs and what it is worth, and what the number of images is worth."""
