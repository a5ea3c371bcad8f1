"""The commands: read the config and the arguments, and call `dq`, which does all computation."""
