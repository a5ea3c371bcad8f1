"""The adapter: the only package that imports mmdet and mmcv."""
