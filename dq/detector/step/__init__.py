"""One training step: forward passes, losses, the optimizer, and what guards it."""
