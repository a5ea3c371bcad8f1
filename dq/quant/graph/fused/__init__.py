"""Fuse functions with the quantizers before and after them into one pass over memory."""
