from __future__ import annotations

from importlib.metadata import version

from tgi_async.build_info import BuildInfo, build_info

VERSION = version("tgi-async")


def test_a_package_has_a_version_and_no_more() -> None:
    found = build_info({"TGI_ASYNC_GIT_SHA": "", "TGI_ASYNC_DOCKER_LABEL": ""})
    assert found == BuildInfo(VERSION, None, None)
    assert str(found) == VERSION
    assert found.fingerprint == f"{VERSION}-native"


def test_an_image_has_a_commit_and_a_label() -> None:
    found = build_info({"TGI_ASYNC_GIT_SHA": "0123abcd", "TGI_ASYNC_DOCKER_LABEL": "sha-0123abc"})
    assert found == BuildInfo(VERSION, "0123abcd", "sha-0123abc")
    assert str(found) == f"{VERSION} (commit 0123abcd, image sha-0123abc)"
    assert found.fingerprint == f"{VERSION}-sha-0123abc"
