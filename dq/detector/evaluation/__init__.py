"""Run a detector on a data set over all ranks, compute metrics, store results."""
