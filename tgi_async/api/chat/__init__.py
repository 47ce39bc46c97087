"""`/v1/chat/completions` and `/chat_tokenize`."""
