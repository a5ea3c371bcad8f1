"""Run mmcv's compiled operators on devices for which they were not compiled."""
