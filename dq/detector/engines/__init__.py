"""Run an exported detector in an engine or with integers in torch."""
