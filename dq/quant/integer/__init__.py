"""The network that an engine computes: integer weights, integer arithmetic, and its file."""
