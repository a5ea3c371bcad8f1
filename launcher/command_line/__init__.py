"""The command line: what is added to a parser, ordered, handed on and shown."""
