"""Which tensor gets which integers: rules, and presets by name."""
