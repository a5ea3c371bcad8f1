"""Comparison of experiments: tables, plots, HTML, and W&B reports."""
