"""Grammars that constrain texts."""
