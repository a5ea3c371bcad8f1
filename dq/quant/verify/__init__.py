"""An exported model beside its graph: run it, cut it, compare layer by layer."""
