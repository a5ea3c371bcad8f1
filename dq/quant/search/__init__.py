"""Search for the cheapest recipe that keeps a model's metric: candidates, order, result."""
