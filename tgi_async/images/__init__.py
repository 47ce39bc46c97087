"""Images of prompts: fetched, prepared in processes with limits, and placed among the tokens."""
