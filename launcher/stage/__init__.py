"""One stage of a command: its parent, its tracking, resuming, its checkpoint, its summary."""
