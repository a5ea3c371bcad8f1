"""Data sets anyone can have at once: embedded digits over photographs, and Pascal VOC."""
