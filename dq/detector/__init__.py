"""The adapter: the only package that imports mmdet and mmcv."""

# Before either is imported, in loader processes too.
from dq.detector import removed_names as removed_names
