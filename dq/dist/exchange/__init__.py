"""Collectives, data parallelism, and what ranks must have in common before either."""
