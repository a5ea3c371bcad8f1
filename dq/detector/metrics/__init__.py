"""What mmdet's data sets make of results: their metrics, and results as plain arrays."""
