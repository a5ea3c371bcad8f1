"""Quantization of whole tensors in one pass over memory, for training on a GPU."""
