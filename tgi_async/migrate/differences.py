"""What docs/differences.md says of flags and variables."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

NAME = "differences.md"
SECTION = "## Flags, environment, metrics, logs"
OF_OTHERS = ("a ", "flags ")
"""Lines that begin so say what a flag does in a special case, or are of flags that `settings_tgi`
has the reasons of."""
WHERE_NOT_GIVEN = ("without ", "default ", "defaults ")
"""Lines that begin so are about flags that are not given."""


class Difference(NamedTuple):
    """A line of the table, without its marks. `names` are flags and variables."""

    names: frozenset[str]
    what: str
    in_tgi: str
    here: str

    @property
    def is_default(self) -> bool:
        return self.what.startswith(WHERE_NOT_GIVEN)


def differences() -> list[Difference]:
    """Return the lines about flags and variables; none where the page is not installed."""
    page = _page()
    if page is None:
        return []
    _, _, section = page.read_text().partition(SECTION)
    found = []
    for line in section.split("\n## ")[0].splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) != 4 or cells[0].startswith(OF_OTHERS):
            continue
        quoted = re.findall(r"`([^`]+)`", cells[0])
        names = {one.split()[0] for one in quoted if re.match(r"--[a-z]|[A-Z][A-Z_]+$", one)}
        if names:
            found.append(Difference(frozenset(names), *map(_plain, cells[:3])))
    return found


def _page() -> Path | None:
    """The page beside the package, or where it was installed."""
    beside = Path(__file__).parents[2] / "docs" / NAME
    if beside.is_file():
        return beside
    installed = [one for one in metadata.files("tgi-async") or [] if one.name == NAME]
    return Path(str(installed[0].locate())) if installed else None


def _plain(cell: str) -> str:
    """Markdown's marks gone, and links to pages as their paths."""
    return re.sub(r"\[([^\]]+)\]\(([^)]+)\)", r"docs/\2", cell).replace("`", "")
