"""Fake quantization in one pass over memory, for training on a GPU."""
