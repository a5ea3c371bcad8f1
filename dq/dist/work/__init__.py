"""What one rank does while the others wait, outside any collective."""
