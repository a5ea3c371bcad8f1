# int8 with scales that are powers of two, as the origin has them; trained as quant_int8.py.
_base_ = ["./quant_int8.py"]
quant = dict(preset="int8_power2")
