"""What PyPI shows of the README."""

from __future__ import annotations

from pathlib import Path

from release.readme import LINK, page

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_links_to_files_lead_to_the_repository_and_others_where_they_did() -> None:
    text = "[a](docs/a.md), [b](https://b.org/c) and [d](#e) ![f](g/h.svg)"

    assert page(text, "https://host/o/r") == (
        "[a](https://host/o/r/blob/main/docs/a.md), [b](https://b.org/c) and [d](#e) "
        "![f](https://host/o/r/raw/main/g/h.svg)"
    )


def test_without_a_repository_links_are_their_texts_and_there_are_no_images() -> None:
    assert page("see [a](docs/a.md). ![f](g/h.svg)", "") == "see a. "


def test_the_readme_has_such_links_and_all_of_them_exist() -> None:
    files = [found["to"].partition("#")[0] for found in LINK.finditer(README)]

    assert len(files) > 10
    assert [file for file in files if not (ROOT / file).exists()] == []
    assert LINK.search(page(README, "https://host/o/r")) is None
    assert LINK.search(page(README, "")) is None
