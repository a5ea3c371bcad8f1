"""Tracking: the record of a run, its copy in W&B, and the comparison of runs."""
