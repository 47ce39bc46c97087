"""Engines of grammars: in the workers, and in the processes that check grammars."""
