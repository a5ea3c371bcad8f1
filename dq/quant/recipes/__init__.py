"""Recipes: which tensor is quantized to which integer format, by rules or by preset name."""
