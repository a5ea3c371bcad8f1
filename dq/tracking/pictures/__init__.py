"""Predictions worth looking at, and drawings of them."""
