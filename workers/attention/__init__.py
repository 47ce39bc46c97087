"""Paged attention, one backend for each kind of device, behind transformers' AttentionInterface."""
