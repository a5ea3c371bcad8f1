"""Hooks of mmcv's runner: quantization, evaluation, statistics, tracking."""
