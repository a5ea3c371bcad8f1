"""Names of nodes in an exported file, for those who write it and those who read it."""

# A Clip that limits a tensor to a format's integers has its quantizer's name with this suffix.
LIMITS = "/limits"
