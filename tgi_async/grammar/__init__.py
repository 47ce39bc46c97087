"""Grammars that texts are held to."""
