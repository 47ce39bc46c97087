"""Rows that follow a grammar: masks made beside the forward pass, forced tokens, completion."""
