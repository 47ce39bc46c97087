"""Draft models: checkpoints beside a model, which guess its next tokens from its hidden states."""
