"""Ranges of a detector, RoI heads included."""
