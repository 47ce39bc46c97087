"""What a client gets when its image is not taken."""

from __future__ import annotations


class ImageRefused(Exception):
    """An image cannot be used. Its text is for the client: what was given, and what is allowed."""
