"""Post-training quantization of one float detector by us and by other tools, evaluated alike."""
