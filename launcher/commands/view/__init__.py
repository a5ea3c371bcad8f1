"""The commands that show something: the data of a config, and a run while it runs."""
