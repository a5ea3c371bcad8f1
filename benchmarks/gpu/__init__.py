"""The project on a GPU: one command that tests, runs and measures, within a time limit."""
