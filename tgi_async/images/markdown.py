"""TGI's images in texts: markdown without an alternative text, `![](url)`."""

from __future__ import annotations

BEGIN = "![]("
END = ")"


def split(text: str) -> list[str]:
    """Return texts at even places and the URLs of the images between them at odd ones."""
    parts: list[str] = []
    start = 0
    while (begin := text.find(BEGIN, start)) >= 0:
        url = begin + len(BEGIN)
        end = text.find(END, url)
        if end < 0:  # nor is there one for any that follows
            break
        parts += [text[start:begin], text[url:end]]
        start = end + len(END)
    return [*parts, text[start:]]
