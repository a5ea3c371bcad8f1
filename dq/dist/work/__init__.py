"""Work of one rank while the others wait, outside any collective."""
