"""Post-training methods: equalization, bias correction, AdaRound, clipping, mixed precision."""
