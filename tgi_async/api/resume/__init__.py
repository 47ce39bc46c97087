"""Streams that a client can go on with after its connection was lost."""
