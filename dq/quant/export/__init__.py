"""From a quantized graph to ONNX: QuantizeLinear and DequantizeLinear, and TIDL's format."""
