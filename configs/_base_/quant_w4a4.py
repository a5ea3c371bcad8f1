# 4-bit weights and activations, the first and last layers 8: as quant_w4a8.py, for longer.
_base_ = ["./quant_w4a8.py"]
quant = dict(preset="w4a4", training={"runner.max_epochs": 3})
