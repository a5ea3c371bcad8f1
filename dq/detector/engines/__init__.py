"""Run an exported detector in ONNX Runtime or with integers in torch."""
