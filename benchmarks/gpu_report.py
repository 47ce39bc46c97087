"""Tables on the terminal, and the same figures in a file after every row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Report:
    """The results of one part of a run so far."""

    def __init__(self, path: Path | None) -> None:
        self.found: dict[str, Any] = {"notes": []}
        self._path = path

    def table(self, name: str, columns: Mapping[str, str]) -> Table:
        """Begin a table, with the format of each column; print its head."""
        rows: list[dict[str, Any]] = []
        self.found[name] = rows
        return Table(self, columns, rows)

    def note(self, text: str) -> None:
        """Add a note for the reader."""
        print(text, flush=True)
        self.found["notes"].append(text)
        self.save()

    def save(self) -> None:
        if self._path is not None:
            # Whoever ends this process at any moment finds a whole file.
            partial = self._path.with_name(f".{self._path.name}.partial")
            partial.write_text(json.dumps(self.found, indent=1))
            partial.replace(self._path)


class Table:
    def __init__(
        self, report: Report, columns: Mapping[str, str], rows: list[dict[str, Any]]
    ) -> None:
        self._report, self._columns, self._rows = report, columns, rows
        self._widths = [max(10, len(heading) + 2) for heading in columns]
        print("".join(map(str.rjust, columns, self._widths)), flush=True)

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row; a value without a column goes to the file alone, None is shown as a dash."""
        shown = (
            "-" if row[heading] is None else format(row[heading], how)
            for heading, how in self._columns.items()
        )
        print("".join(map(str.rjust, shown, self._widths)), flush=True)
        self._rows.append(dict(row))
        self._report.save()
