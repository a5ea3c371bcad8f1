"""A whole model for anyone's training loop: prepare, calibrate, train, export."""
