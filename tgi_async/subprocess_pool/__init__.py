"""Processes with a time and a memory limit, for input that clients send."""
