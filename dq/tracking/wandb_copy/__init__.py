"""The copy of a run to Weights & Biases, by a separate process."""
