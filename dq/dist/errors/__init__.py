"""Errors of one rank, and how to tell expected errors from unexpected ones."""
