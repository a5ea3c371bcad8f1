"""Run an exported detector: ONNX Runtime, integers in torch."""
