"""``launcher coverage``: run every family of mmdet's configs through all steps, and tabulate."""
