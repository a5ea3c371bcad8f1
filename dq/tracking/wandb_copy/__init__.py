"""The copy of a run that goes to Weights & Biases, from a process of its own."""
