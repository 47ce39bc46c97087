"""The fused path: one decoder of ours for the families that are built alike."""
