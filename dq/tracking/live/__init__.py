"""The state of a run while it runs, from the files of its record; and a report that refreshes."""
