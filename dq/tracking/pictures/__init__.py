"""The predictions that differ most between the float and the quantized detector, and drawings."""
