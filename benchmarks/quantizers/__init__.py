"""Scripts that quantize a float ONNX model with other tools, each for the tool's own environment.

    PYTHON benchmarks/quantizers/with_TOOL.py FLOAT.onnx IMAGES.npy OUT METHOD

A script imports nothing of this project. IMAGES.npy has the calibration images, ``(N, C, H, W)``
float32. A tool that steers by accuracy prints ``EVALUATE FILE.onnx`` and reads the metric of that
file, 0 to 1, from its standard input.
"""
