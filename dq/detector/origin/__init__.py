"""Wrappers with the names of the project that this one reimplements."""
