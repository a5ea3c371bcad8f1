"""Targets: what an integer engine fuses and computes in integers, and its integer formats."""
