"""Quantization on one process: plain torch and torch.fx, no ranks, no detector library."""
