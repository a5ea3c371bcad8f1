"""Checkpoints: whole, with a checksum, and read as data."""
