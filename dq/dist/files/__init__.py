"""Checkpoints: written whole, with a checksum, and read as data only."""
