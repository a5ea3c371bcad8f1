"""Measure the speed of an exported model and of the same model in float, layer by layer."""
