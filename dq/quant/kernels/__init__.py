"""The same rounding in one pass over memory: C++ on a CPU, Triton on a GPU, and torch.compile."""
