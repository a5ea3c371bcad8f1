"""Mutation testing: random changes of the source (mutants), and the tests that find them."""
