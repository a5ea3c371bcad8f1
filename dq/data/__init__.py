"""Data sets to start with: digits over photographs without a download, and Pascal VOC."""
