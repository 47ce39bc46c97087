"""Make the README a page that is read outside of the repository, as on PyPI."""

from __future__ import annotations

import re

LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<to>(?!\w+:|#)[^)\s]+)\)")
"""An image or a link in Markdown to a file of the repository."""


def page(readme: str, repository: str) -> str:
    """Return `readme` with links to files of the repository at this address, such as
    `https://github.com/owner/name`; without an address with their texts instead, and no images."""

    def replaced(found: re.Match[str]) -> str:
        image, text, to = found["image"], found["text"], found["to"]
        if not repository:
            return "" if image else text
        return f"{image}[{text}]({repository}/{'raw' if image else 'blob'}/main/{to})"

    return LINK.sub(replaced, readme)
