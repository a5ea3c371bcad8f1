"""Detect on a data set over all ranks, and what is kept of it."""
