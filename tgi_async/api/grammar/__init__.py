"""Grammars of request bodies."""
