"""Rewrites that give each channel a parameter of its own: limits of ReLU6, scales."""
