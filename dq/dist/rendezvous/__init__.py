"""Where ranks meet: their places from the environment, the store, numbered meetings."""
