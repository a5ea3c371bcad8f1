"""Fake quantization in one pass over memory: C++ on a CPU, Triton on a GPU, torch.compile."""
