"""The adapter to mmdet: the only package that imports mmdet and mmcv."""

import importlib.util

# Before either is imported, also in worker processes. A login node has neither.
if importlib.util.find_spec("numpy") and importlib.util.find_spec("torch"):
    from dq.detector import removed_names as removed_names
