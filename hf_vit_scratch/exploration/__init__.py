"""Search for a model size, studies of model size and number of images, and the cost of a size."""
