"""mmcv's compiled operators on devices that they were not compiled for."""
