"""What a training does besides its steps: averages, further losses, teachers."""
