"""Modules that fake-quantize: activations, weights, learned scales, layers with folded norms."""
