# 4-bit weights and activations, first and last layers 8 bits: like quant_w4a8.py, but longer.
_base_ = ["./quant_w4a8.py"]
quant = dict(preset="w4a4", training={"runner.max_epochs": 3})
