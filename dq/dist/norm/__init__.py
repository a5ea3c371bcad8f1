"""Batch normalization over all ranks: one operator with a gradient, in C++ or torch."""
