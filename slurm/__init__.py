"""Submission to Slurm through submitit: what runs, on what, in which order; without torch."""
