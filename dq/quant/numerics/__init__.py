"""Integer formats, scales and zero points: the arithmetic of affine quantization."""
