"""Getting a model ready to be served, and running it."""
