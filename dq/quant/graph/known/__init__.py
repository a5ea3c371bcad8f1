"""What is known of a graph's values before any quantizer: position, sign, and whose call."""
