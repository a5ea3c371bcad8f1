"""A detector: built, filled with weights, traced, compiled, run under autocast."""
