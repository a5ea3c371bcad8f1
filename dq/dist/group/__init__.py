"""The process group: who is there, who failed before it began, who speaks for all."""
