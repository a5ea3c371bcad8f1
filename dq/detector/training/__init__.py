"""A whole training: runner, checkpoints, and how one goes on."""
