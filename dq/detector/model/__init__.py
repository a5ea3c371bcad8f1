"""Build a detector, load its weights, trace it, compile it, run it under autocast."""
