"""The record of a stage in its folder: run, rows, summary; without secrets."""
