"""Block reconstruction: learn roundings, ranges and biases of a few layers at a time."""
