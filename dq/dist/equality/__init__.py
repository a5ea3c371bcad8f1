"""Digests that show whether all ranks hold the same tensors."""
