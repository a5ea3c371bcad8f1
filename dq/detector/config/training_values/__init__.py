"""Check values of the sections that say how a detector is trained."""
