"""Ranks of a distributed job in plain torch.distributed, with no knowledge of models."""
