"""Read a config: mmdet's keys and flags, overrides, and checks for misspelt keys."""
