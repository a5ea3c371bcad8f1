"""Distributed quantization of detectors: numerics, ranks, the bridge between them, the adapter."""
