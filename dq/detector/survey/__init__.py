"""Small versions of mmdet's configs, to try every command on each family."""
