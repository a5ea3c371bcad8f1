"""From a model to a quantized graph: trace it, find the tensors to quantize, insert quantizers."""
