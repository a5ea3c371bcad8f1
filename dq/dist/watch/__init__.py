"""Signals, agreement on the step to stop at, a watchdog, and slow ranks."""
