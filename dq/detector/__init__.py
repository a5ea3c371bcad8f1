"""The adapter: the only package that imports mmdet and mmcv."""

import importlib.util

# Before either is imported, in loader processes too. A login node has none of it.
if importlib.util.find_spec("numpy") and importlib.util.find_spec("torch"):
    from dq.detector import removed_names as removed_names
