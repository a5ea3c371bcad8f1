"""Observers: they watch the values of a tensor and give a range to quantize."""
