"""Wrappers with the names of the original project, edgeai-torchvision."""
