"""Grammar engines, for the workers and for the processes that check grammars."""
