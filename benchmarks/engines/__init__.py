"""Exported int8 detectors in engines, beside float and beside the engines' own quantizers."""
