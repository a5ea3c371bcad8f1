"""Errors of one rank, and how they are told from errors that nobody foresaw."""
