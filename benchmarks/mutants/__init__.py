"""Would a test notice? Random changes of the source (mutants), and the tests that find them."""
