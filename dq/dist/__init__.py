"""Ranks of a distributed job, in plain torch.distributed: they know ranks, not what they carry."""
