"""Read a config: mmdet's keys and flags, overrides, and what is mistyped."""
