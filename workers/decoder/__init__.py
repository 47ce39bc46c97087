"""The fused path: one decoder for the families with the same structure."""
