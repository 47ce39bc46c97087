"""Images in the worker: read, encoded once, and put where a row has them."""
