"""``launcher coverage``: every family of mmdet's configs through the whole chain, as a table."""
