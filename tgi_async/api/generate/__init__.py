"""`/generate`, `/generate_stream` and `/`."""
