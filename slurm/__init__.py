"""Submission to Slurm with submitit: what runs, with which resources, in which order; no torch."""
