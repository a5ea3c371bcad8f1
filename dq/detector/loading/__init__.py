"""Batches of training images: order, processes, and tensors on the device."""
