"""Between text and tokens: tokenizer, chat templates, incremental detokenization."""
