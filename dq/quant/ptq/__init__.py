"""Repairs after calibration: equalization, bias correction, AdaRound, clipping, mixed precision."""
