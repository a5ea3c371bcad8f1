"""Submission to Slurm through submitit."""
