"""Commands for Slurm: submit jobs, list them, read their logs, cancel them."""
