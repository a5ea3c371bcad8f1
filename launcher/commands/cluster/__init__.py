"""Commands that talk to Slurm: send jobs, list them, read their logs, cancel them."""
