"""What a run leaves behind to be compared: summaries, tables, plots."""
