"""What is known of a graph's values before any quantizer: their position, and their sign."""
