"""The door: names the commands, reads config and arguments, composes the rest, computes nothing."""
