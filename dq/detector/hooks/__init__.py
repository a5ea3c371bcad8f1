"""Hooks for mmcv's runner: quantization, evaluation, statistics, tracking."""
