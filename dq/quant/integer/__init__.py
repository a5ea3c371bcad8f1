"""The integer network: integer weights, the arithmetic of integer engines, and its file."""
