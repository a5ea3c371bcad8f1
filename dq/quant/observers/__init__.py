"""Observers: from the values that calibration sees to a range."""
