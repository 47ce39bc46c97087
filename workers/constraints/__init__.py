"""Rows with a grammar: masks computed beside the forward pass, jump-forward tokens, completion."""
