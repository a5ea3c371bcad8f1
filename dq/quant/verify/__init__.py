"""Verify an exported model against its graph: run it, cut it, compare layer by layer."""
