"""What a stage leaves in its folder: run, rows, summary; without secrets."""
