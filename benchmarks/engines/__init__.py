"""Time exported int8 detectors in engines, and compare with float and with other quantizers."""
