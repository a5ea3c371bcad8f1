"""Collectives, data parallelism, and checks that ranks agree before a collective."""
