# int8 with power-of-two scales, like the original code; trained like quant_int8.py.
_base_ = ["./quant_int8.py"]
quant = dict(recipe="qat-int8-power2")
