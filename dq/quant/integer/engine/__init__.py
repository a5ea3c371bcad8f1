"""The arithmetic of ONNX Runtime's CPU kernels, in torch, bit for bit."""
