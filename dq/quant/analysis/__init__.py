"""Measurements of a quantized graph: sensitivity of each quantizer, statistics for the log."""
