"""Calibrate the ranges of a detector, including RoI heads."""
