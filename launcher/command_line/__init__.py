"""The command line: shared arguments, the order of words, forwarded options, and output."""
