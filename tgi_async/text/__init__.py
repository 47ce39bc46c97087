"""Text and tokens: tokenizer, chat templates, incremental detokenization."""
