"""Recipes of quantization-aware training: rules that give rates, lengths and methods."""
