"""Experiments side by side: tables, plots, HTML, and W&B's reports."""
