"""The metrics of mmdet's data sets, and detector results as plain arrays."""
