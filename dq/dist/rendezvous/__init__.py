"""How ranks find each other: rank from the environment, the store, numbered meetings on it."""
