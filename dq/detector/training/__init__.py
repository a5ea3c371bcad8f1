"""A whole training: runner, checkpoints, resuming."""
