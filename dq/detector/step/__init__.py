"""One training step: forward passes, losses, optimizer, guards."""
