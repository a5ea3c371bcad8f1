"""Parts of quantization-aware training: schedule, distillation, weight average, oscillation."""
