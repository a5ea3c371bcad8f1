"""Read a folder of labelled photographs, whatever its format."""
