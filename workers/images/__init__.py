"""The process that prepares images for a model: no torch, limits of time and memory."""
