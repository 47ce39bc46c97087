"""Which certificates are taken, and how they are replaced."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.api.waiting import until
from tests.helpers.certificates import Pair, pair
from tgi_async import followed_files
from tgi_async.certificate import Certificate, CertificateFiles
from tgi_async.errors import StartError


@pytest.fixture
def own(tmp_path: Path) -> Pair:
    return pair(tmp_path)


def test_tls_is_at_least_1_2(own: Pair) -> None:
    context = CertificateFiles(*own).load()
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.verify_mode is ssl.CERT_NONE


def test_one_file_may_have_both(own: Pair, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_text(Path(own.certificate).read_text() + Path(own.key).read_text())
    CertificateFiles(str(both), str(both)).load()


def test_a_missing_file_is_named(own: Pair, tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")
    with pytest.raises(StartError, match=rf"--ssl-certfile: cannot read {gone}: No such file"):
        CertificateFiles(gone, own.key).load()
    with pytest.raises(StartError, match=rf"--ssl-keyfile: cannot read {gone}: No such file"):
        CertificateFiles(own.certificate, gone).load()
    with pytest.raises(StartError, match=rf"--ssl-ca-certs: cannot read {gone}: No such file"):
        CertificateFiles(*own, authorities=gone).load()


def test_a_key_of_another_certificate_is_refused(own: Pair, tmp_path: Path) -> None:
    other = pair(tmp_path, "other")
    with pytest.raises(StartError, match=r"the key is another certificate's\. Given: .*other\.key"):
        CertificateFiles(own.certificate, other.key).load()


def test_a_file_that_is_no_pem_is_refused(own: Pair, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("no certificate")
    for files in (
        CertificateFiles(str(text), own.key),
        CertificateFiles(own.certificate, str(text)),
        CertificateFiles(*own, authorities=str(text)),
    ):
        with pytest.raises(StartError, match=r"cannot be used: .*Given: .*text"):
            files.load()


def test_an_encrypted_key_needs_its_password(tmp_path: Path) -> None:
    own = pair(tmp_path, password="secret")
    CertificateFiles(*own, password="secret").load()
    with pytest.raises(StartError, match=r"encrypted\. Set .* SSL_KEYFILE_PASSWORD"):
        CertificateFiles(*own).load()
    with pytest.raises(StartError, match="cannot be used") as error:
        CertificateFiles(*own, password="wrong").load()
    assert "wrong" not in str(error.value)


@asynccontextmanager
async def following(found: Certificate) -> AsyncIterator[None]:
    task = asyncio.create_task(found.follow())
    try:
        yield
    finally:
        task.cancel()


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(followed_files, "RELOAD_SECONDS", 0.01)


@pytest.mark.usefixtures("often")
async def test_files_that_are_written_are_read_again(own: Pair, tmp_path: Path) -> None:
    new = pair(tmp_path, "new")
    found = Certificate(CertificateFiles(*own))
    before = found.context
    async with following(found):
        shutil.copy(new.certificate, own.certificate)
        shutil.copy(new.key, own.key)
        await until(lambda: found.context is not before)


def mounted(folder: Path, version: str, source: Pair) -> None:
    """Put files into a folder as Kubernetes does: behind a link to a folder, which is swapped."""
    (folder / version).mkdir()
    shutil.copy(source.certificate, folder / version / "tls.crt")
    shutil.copy(source.key, folder / version / "tls.key")
    (folder / "..data_tmp").symlink_to(version)
    os.replace(folder / "..data_tmp", folder / "..data")


@pytest.mark.usefixtures("often")
async def test_links_that_are_swapped_are_followed(own: Pair, tmp_path: Path) -> None:
    folder = tmp_path / "mount"
    folder.mkdir()
    mounted(folder, "..1", own)
    for name in ("tls.crt", "tls.key"):
        (folder / name).symlink_to(f"..data/{name}")
    found = Certificate(CertificateFiles(str(folder / "tls.crt"), str(folder / "tls.key")))
    before = found.context
    async with following(found):
        mounted(folder, "..2", pair(tmp_path, "new"))
        await until(lambda: found.context is not before)


@pytest.mark.usefixtures("often")
async def test_what_cannot_be_used_keeps_the_one_before_until_it_can(
    own: Pair, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    new = pair(tmp_path, "new")
    found = Certificate(CertificateFiles(*own))
    before = found.context
    async with following(found):
        shutil.copy(new.certificate, own.certificate)
        await until(lambda: "the one before stays in use" in caplog.text)
        assert found.context is before
        await asyncio.sleep(0.05)
        assert caplog.text.count("stays in use") == 1
        shutil.copy(new.key, own.key)
        await until(lambda: found.context is not before)
        os.remove(own.key)
        await until(lambda: "No such file" in caplog.text)
