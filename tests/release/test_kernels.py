"""C kernels for other processors than this one: what can be asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from release import kernels


@pytest.mark.parametrize("platform", ["manylinux_2_28_riscv64", "win_amd64", "linux_x86_64"])
def test_a_platform_without_kernels_is_refused(platform: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"platform {platform}.*aarch64, x86_64"):
        kernels.build(platform, tmp_path / "libraries")


def test_without_zig_the_message_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="zig, which is not installed"):
        kernels.build("manylinux_2_28_x86_64", tmp_path / "libraries")
