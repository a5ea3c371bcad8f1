"""The GPU check: one command that tests, runs and measures the project, within a time limit."""
