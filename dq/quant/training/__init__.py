"""What quantization-aware training adds: schedule, distillation, averages, oscillation."""
