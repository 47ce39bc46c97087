"""Limits of control groups, as the kernel shows them on machines and in containers of each kind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.groups import limited_groups
from tgi_async import cgroups

GIB = 2**30
NO_LIMIT_IN_V1 = 9223372036854771712

Layout = Callable[..., Path]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Write a /proc/self and the files of groups.

    `own` are the lines of /proc/self/cgroup, `mounts` (type, root, mount point, options), and
    `groups` the files' contents by path. Paths are below a folder that stands for the root.
    """

    def write(own: str, mounts: list[tuple[str, str, str, str]], groups: dict[str, str]) -> Path:
        proc = tmp_path / "proc"
        proc.mkdir()
        (proc / "cgroup").write_text(own)
        lines = ["22 1 0:20 / / rw,relatime shared:1 - ext4 /dev/vda rw"]
        for kind, root, point, options in mounts:
            where = str(tmp_path) + point.replace(" ", "\\040")
            lines.append(f"30 22 0:26 {root} {where} ro,nosuid shared:9 - {kind} cgroup {options}")
        (proc / "mountinfo").write_text("\n".join(lines))
        for name, text in groups.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return proc

    return write


def left(proc: Path) -> int | None:
    """Bytes that the tightest group leaves."""
    return min((one.left for one in cgroups.memory_limits(proc)), default=None)


def v2(folder: str, most: object = "max", used: int = 0, stat: str = "") -> dict[str, str]:
    """The files of a group of version 2."""
    return {
        f"{folder}/memory.max": f"{most}\n",
        f"{folder}/memory.high": "max\n",
        f"{folder}/memory.current": f"{used}\n",
        f"{folder}/memory.stat": stat,
    }


def v1(folder: str, most: int = NO_LIMIT_IN_V1, used: int = 0, stat: str = "") -> dict[str, str]:
    """The files of a group of version 1."""
    return {
        f"{folder}/memory.limit_in_bytes": f"{most}\n",
        f"{folder}/memory.usage_in_bytes": f"{used}\n",
        f"{folder}/memory.stat": stat,
    }


CGROUP2 = ("cgroup2", "/", "/sys/fs/cgroup", "rw,nsdelegate")
MEMORY1 = ("cgroup", "/", "/sys/fs/cgroup/memory", "rw,memory")


def test_a_container_with_a_namespace_sees_its_own_group_as_the_root(layout: Layout) -> None:
    proc = layout("0::/\n", [CGROUP2], v2("sys/fs/cgroup", 2 * GIB, GIB))
    assert left(proc) == GIB


def test_a_service_has_the_limits_of_the_slices_above_it(layout: Layout) -> None:
    root = "sys/fs/cgroup"
    groups = {
        f"{root}/memory.stat": "",  # the root has no limit, nor files of one
        **v2(f"{root}/system.slice", 3 * GIB, 2 * GIB),
        **v2(f"{root}/system.slice/tgi.service", "max", GIB),
    }
    proc = layout("0::/system.slice/tgi.service\n", [CGROUP2], groups)
    (limit,) = cgroups.memory_limits(proc)
    assert (limit.left, limit.group.name) == (GIB, "system.slice")
    assert str(limit).endswith("sys/fs/cgroup/system.slice is limited to 3.22 GB")


def test_the_tightest_of_all_groups_holds(layout: Layout) -> None:
    root = "sys/fs/cgroup/a"
    groups = {**v2(root, 4 * GIB, 3 * GIB), **v2(f"{root}/b", 8 * GIB, GIB)}
    assert left(layout("0::/a/b\n", [CGROUP2], groups)) == GIB


def test_a_group_that_is_slowed_down_above_its_high_mark_is_not_to_come_there(
    layout: Layout,
) -> None:
    groups = v2("sys/fs/cgroup/a", 8 * GIB, GIB) | {"sys/fs/cgroup/a/memory.high": str(2 * GIB)}
    assert left(layout("0::/a\n", [CGROUP2], groups)) == GIB


@pytest.mark.parametrize(
    ("stat", "files"),
    [
        ("anon 5\ninactive_file 7\nactive_file 0\nfile_mapped 0\n", 7),
        ("inactive_file 7\nactive_file 4\nfile_mapped 3\n", 8),
        ("inactive_file 7\nactive_file 4\nfile_mapped 9\n", 7),
        ("", 0),
    ],
)
def test_files_that_nobody_maps_give_way(layout: Layout, stat: str, files: int) -> None:
    proc = layout("0::/\n", [CGROUP2], v2("sys/fs/cgroup", 100, 60, stat))
    assert left(proc) == 40 + files


def test_version_1_beside_an_empty_version_2(layout: Layout) -> None:
    own = "5:memory:/user/x\n2:cpu,cpuacct:/\n1:name=systemd:/\n0::/\n"
    mounts = [
        ("cgroup2", "/", "/sys/fs/cgroup/unified", "rw"),
        ("cgroup", "/", "/sys/fs/cgroup/cpu", "rw,cpu,cpuacct"),
        MEMORY1,
    ]
    root = "sys/fs/cgroup/memory"
    stat = "inactive_file 1\ntotal_inactive_file 5\ntotal_active_file 9\ntotal_mapped_file 4\n"
    groups = {**v1(root), **v1(f"{root}/user"), **v1(f"{root}/user/x", 100, 60, stat)}
    assert left(layout(own, mounts, groups)) == 50


def test_a_container_without_a_namespace_sees_the_lower_part_of_its_path(layout: Layout) -> None:
    own = "4:memory:/docker/1a2b/inner\n"
    mount = ("cgroup", "/docker/1a2b", "/sys/fs/cgroup/memory", "ro,memory")
    root = "sys/fs/cgroup/memory"
    groups = {**v1(root, 100, 10), **v1(f"{root}/inner", 50, 5)}
    assert left(layout(own, [mount], groups)) == 45


@pytest.mark.parametrize("own", ["/docker/other", "/../other", "/docker/1a2bc", "/"])
def test_a_group_that_is_not_below_the_mount_has_at_least_the_mounts_limit(
    layout: Layout, own: str
) -> None:
    mount = ("cgroup", "/docker/1a2b", "/sys/fs/cgroup/memory", "ro,memory")
    groups = v1("sys/fs/cgroup/memory", 100, 10)
    assert left(layout(f"4:memory:{own}\n", [mount], groups)) == 90


def test_version_1_tells_of_limits_above_the_container(layout: Layout) -> None:
    stat = "hierarchical_memory_limit 70\n"
    proc = layout("4:memory:/\n", [MEMORY1], v1("sys/fs/cgroup/memory", used=20, stat=stat))
    assert left(proc) == 50


def test_a_mount_with_a_space_in_its_name(layout: Layout) -> None:
    mount = ("cgroup2", "/", "/my groups", "rw")
    assert left(layout("0::/a\n", [mount], v2("my groups/a", 100, 10))) == 90


@pytest.mark.parametrize("groups", [{}, v2("sys/fs/cgroup"), v2("sys/fs/cgroup", "what", 5)])
def test_where_there_is_no_limit_none_is_found(layout: Layout, groups: dict[str, str]) -> None:
    proc = layout("0::/\n", [CGROUP2], groups)
    assert cgroups.memory_limits(proc) == []
    assert cgroups.cpu_quota(proc) is None


def test_a_system_without_groups_has_no_limits(tmp_path: Path) -> None:
    assert cgroups.memory_limits(tmp_path) == []
    assert cgroups.cpu_quota(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "quota"),
    [("max 100000", None), ("100000 100000", 1.0), ("150000 100000", 1.5), ("20000 50000", 0.4)],
)
def test_a_quota_of_version_2(layout: Layout, text: str, quota: float | None) -> None:
    proc = layout("0::/a\n", [CGROUP2], {"sys/fs/cgroup/a/cpu.max": f"{text}\n"})
    assert cgroups.cpu_quota(proc) == quota


@pytest.mark.parametrize(("microseconds", "quota"), [(-1, None), (100000, 1.0), (250000, 2.5)])
def test_a_quota_of_version_1(layout: Layout, microseconds: int, quota: float | None) -> None:
    mount = ("cgroup", "/", "/sys/fs/cgroup/cpu,cpuacct", "rw,cpu,cpuacct")
    files = {"cfs_quota_us": microseconds, "cfs_period_us": 100000}
    root = "sys/fs/cgroup/cpu,cpuacct/a/cpu."
    groups = {root + name: str(value) for name, value in files.items()}
    assert cgroups.cpu_quota(layout("3:cpu,cpuacct:/a\n", [mount], groups)) == quota


def test_the_least_quota_on_the_way_up_holds(layout: Layout) -> None:
    groups = {
        "sys/fs/cgroup/a/cpu.max": "100000 100000",
        "sys/fs/cgroup/a/b/cpu.max": "400000 100000",
    }
    assert cgroups.cpu_quota(layout("0::/a/b\n", [CGROUP2], groups)) == 1.0


def test_the_killed_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vmstat = tmp_path / "vmstat"
    vmstat.write_text("nr_free_pages 5\noom_kill 3\npgfault 9\n")
    assert cgroups.n_killed(vmstat) == 3
    assert cgroups.n_killed(tmp_path / "none") == 0
    monkeypatch.setattr(cgroups, "n_killed", lambda: 4)
    assert cgroups.why_killed(4) == ""
    assert ", because memory ran out: " in cgroups.why_killed(3)


LOOK = "from tgi_async import cgroups; print(cgroups.memory_limits()[0].limit, cgroups.cpu_quota())"


def test_the_limits_of_real_groups_are_seen() -> None:
    with limited_groups("700M", 1.5) as groups:

        def enter() -> None:
            for group in groups:
                (group / "cgroup.procs").write_text(str(os.getpid()))

        command = [sys.executable, "-c", LOOK]
        done = subprocess.run(command, preexec_fn=enter, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == [str(700 << 20), "1.5"], done.stderr
