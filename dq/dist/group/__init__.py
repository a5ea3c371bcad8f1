"""The process group: start and end, which ranks are alive, and which rank reports an error."""
