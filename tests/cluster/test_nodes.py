from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
from urllib.parse import urlsplit

import pytest
from msgspec.structs import replace

from tests.cluster.conftest import KEYS, MODEL, Make, Nodes
from tests.doubles.fake_engine_run import DEADLINE, alive, until
from tests.doubles.fake_worker import VARIABLE, Behaviour
from tests.test_supervisor import FIRST, START, ignore
from tgi_async.cluster import interfaces, leader, member
from tgi_async.cluster.interfaces import Route
from tgi_async.cluster.leader import leading
from tgi_async.cluster.member import _cut
from tgi_async.errors import StartError
from tgi_async.supervisor import NodeLost, WorkerDied, WorkerGroup
from tgi_async.wire.messages import CachePool, Loading, RankConfig, Ready
from tgi_async.wire.nodes import MOST_TEXT, GroupReport, NodeInfo, Report, to_leader_codec
from workers.__main__ import PEER_LOST_SECONDS


async def death(group: WorkerGroup | None) -> WorkerDied:
    """Return how a group that is waited for dies."""
    assert group is not None
    async with asyncio.timeout(DEADLINE):
        with pytest.raises(WorkerDied) as caught:
            await group.receive()
    return caught.value


async def test_a_group_has_ranks_on_two_nodes(nodes: Nodes, restarter: Make) -> None:
    workers = restarter(await nodes.lead(n_ranks=2), 4)
    there = nodes.join(n_ranks=2)
    ready = await workers.launch(START, ignore)
    assert ready.n_blocks == 64
    assert workers.group is not None
    assert len({*workers.group.pids, *there.pids}) == 4
    workers.group.send(FIRST)
    assert [one.row for one in (await workers.group.receive()).sampled] == [0]


async def test_the_leader_says_who_is_waited_for(nodes: Nodes, restarter: Make) -> None:
    workers = restarter(await nodes.lead())
    phases: list[Loading] = []
    launching = asyncio.create_task(workers.launch(START, phases.append))
    await until(lambda: bool(phases))
    assert phases[0].phase == "waiting for node 1 of 2"
    nodes.join()
    await launching


async def test_the_smallest_cache_of_all_nodes_counts(
    nodes: Nodes, restarter: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = restarter(await nodes.lead())
    there = nodes.join()
    launching = asyncio.create_task(workers.launch(START, ignore))
    monkeypatch.setenv(VARIABLE, Behaviour(n_blocks=7).environment())
    assert (await launching).n_blocks == 7
    assert there.pids


async def test_a_rank_that_dies_elsewhere_is_the_death_of_the_group(
    nodes: Nodes, restarter: Make
) -> None:
    workers = restarter(await nodes.lead())
    there = nodes.join()
    await workers.launch(START, ignore)
    (pid,) = there.pids
    os.kill(pid, signal.SIGKILL)
    error = await death(workers.group)
    assert "worker 1 was killed by SIGKILL" in str(error)
    assert "node 1 (" in str(error)
    assert not isinstance(error, NodeLost)
    await workers.kill()
    await workers.relaunch(START)
    assert len(there.pids) == 1
    assert there.pids != [pid]


async def test_a_rank_that_dies_here_is_the_end_of_those_elsewhere(
    nodes: Nodes, restarter: Make
) -> None:
    workers = restarter(await nodes.lead())
    there = nodes.join()
    await workers.launch(START, ignore)
    (pid,) = there.pids
    assert workers.group is not None
    os.kill(workers.group.pids[0], signal.SIGKILL)
    assert "worker 0 was killed by SIGKILL" in str(await death(workers.group))
    await workers.kill()
    await until(lambda: not alive(pid))


async def test_a_model_that_is_refused_elsewhere_is_refused(
    nodes: Nodes, restarter: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, Behaviour(refuse={1: "no room"}).environment())
    workers = restarter(await nodes.lead())
    nodes.join()
    with pytest.raises(StartError, match="no room"):
        await workers.launch(START, ignore)


async def test_a_node_that_leaves_is_waited_for(nodes: Nodes, restarter: Make) -> None:
    workers = restarter(await nodes.lead())
    there = nodes.join()
    await workers.launch(START, ignore)
    (pid,) = there.pids
    await there.leave()
    assert not alive(pid)
    error = await death(workers.group)
    assert isinstance(error, NodeLost)
    assert "left" in str(error)
    await workers.kill()
    relaunching = asyncio.create_task(workers.relaunch(START))
    await asyncio.sleep(0.05)
    assert not relaunching.done()
    nodes.join()
    await relaunching


async def test_a_node_that_leaves_while_it_loads_is_waited_for(
    nodes: Nodes, restarter: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, Behaviour(load_seconds=0.3).environment())
    workers = restarter(await nodes.lead())
    there = nodes.join()
    launching = asyncio.create_task(workers.launch(START, ignore))
    await until(lambda: bool(there.pids))
    await there.leave()
    again = nodes.join()
    await launching
    assert again.pids


async def test_a_node_that_is_silent_is_lost(
    nodes: Nodes, restarter: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leader, "SILENT_SECONDS", 0.5)
    workers = restarter(await nodes.lead())
    there = nodes.join()
    await workers.launch(START, ignore)
    with monkeypatch.context() as patch:
        patch.setattr(there.member, "_report", _silence)
        error = await death(workers.group)
    assert isinstance(error, NodeLost)
    assert "was silent for 0.5 seconds" in str(error)
    # Once it is heard again, its ranks are those of a group that is gone.
    before = there.pids
    await workers.kill()
    await workers.relaunch(START)
    assert set(before).isdisjoint(there.pids)
    assert not any(map(alive, before))


def test_a_node_is_found_to_be_lost_before_ranks_that_lost_it_end() -> None:
    """Otherwise these are the reason, and the requests are to blame. A report may come just after a
    beat, and a busy leader counts two beats at most of the time that it took."""
    assert PEER_LOST_SECONDS > 2 * (leader.SILENT_SECONDS + leader.BEAT_SECONDS)


async def test_a_leader_that_is_silent_is_waited_for(
    nodes: Nodes, restarter: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(member, "SILENT_SECONDS", 0.5)
    cluster = await nodes.lead()
    workers = restarter(cluster)
    there = nodes.join()
    await workers.launch(START, ignore)
    (pid,) = there.pids
    with monkeypatch.context() as patch:
        patch.setattr(cluster, "_send", _silence)
        await until(lambda: not alive(pid))
        assert not there.running.done()
    assert isinstance(await death(workers.group), WorkerDied)
    await workers.kill()
    await workers.relaunch(START)
    assert there.pids


async def test_members_end_with_their_leader(nodes: Nodes, restarter: Make) -> None:
    cluster = await nodes.lead()
    workers = restarter(cluster)
    there = nodes.join()
    await workers.launch(START, ignore)
    pids = there.pids
    await workers.stop(DEADLINE)
    await nodes.leading.aclose()
    async with asyncio.timeout(DEADLINE):
        await there.running
    assert not any(map(alive, pids))


async def test_another_leader_finds_the_node_without_the_groups_of_the_last(
    nodes: Nodes, restarter: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = await nodes.lead()
    there = nodes.join()
    workers = restarter(cluster)
    await workers.launch(START, ignore)
    (pid,) = there.pids
    # As if it were killed: it says nothing any more.
    monkeypatch.setattr(leader, "END_SECONDS", 0.05)
    monkeypatch.setattr(cluster, "_send", _silence)
    await nodes.leading.aclose()
    again = restarter(await nodes.lead())
    await again.launch(START, ignore)
    assert not alive(pid)
    assert len(there.pids) == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    {
        "model": ({"model": "others"}, "other files of the model"),
        "ranks": ({"n_ranks": 2}, "1 ranks on each node, and the node 2"),
        "rank": ({"rank": 5}, "--node-rank is 5"),
    }.values(),
)
async def test_a_node_that_does_not_suit_is_told_why(
    nodes: Nodes, options: dict[str, object], reason: str
) -> None:
    cluster = await nodes.lead()
    joined = nodes.join(**options)  # type: ignore[arg-type]
    async with asyncio.timeout(DEADLINE):
        with pytest.raises(StartError, match=reason):
            await joined.running
    assert cluster.missing == [1]


async def test_a_place_that_is_taken_is_kept(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = await nodes.lead()
    first = nodes.join()
    await until(lambda: not cluster.missing)
    monkeypatch.setattr(leader, "SILENT_SECONDS", 0.2)
    second = nodes.join()
    async with asyncio.timeout(DEADLINE):
        with pytest.raises(StartError, match="is there already, and lives"):
            await second.running
    assert not first.running.done()
    assert not cluster.missing


async def test_a_place_whose_member_died_is_given_to_the_next(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = await nodes.lead()
    first = nodes.join()
    await until(lambda: not cluster.missing)
    monkeypatch.setattr(leader, "SILENT_SECONDS", 0.3)
    monkeypatch.setattr(first.member, "_report", _silence)
    second = nodes.join()
    await until(lambda: second.member._leader == cluster._name)


async def test_what_does_not_fit_a_frame_is_no_order(nodes: Nodes, restarter: Make) -> None:
    workers = restarter(await nodes.lead())
    nodes.join()
    with pytest.raises(StartError, match=r"cannot be told how to start: .*ends answers in 300000"):
        await workers.launch(replace(START, stop_token_ids=[2**31 - 1] * 300_000), ignore)
    await workers.launch(START, ignore)


def test_what_a_member_reports_fits_a_frame() -> None:
    longest = "\N{GRINNING FACE}" * MOST_TEXT
    found = Ready([CachePool(1)], 1, 1, 1, "cpu", [1] * 2**18, 1, 1, 1, notes=[longest * 2] * 99)
    group = GroupReport(1, None, 1, False, _cut(found), longest, longest)
    node = NodeInfo(1, 2, 1, "1", "model", "host")
    frame = to_leader_codec().encode(Report("member", node, "leader", (group, group)))
    assert to_leader_codec().decode(frame).groups == (group, group)


async def test_ranks_meet_at_a_port_that_nobody_has(nodes: Nodes) -> None:
    cluster = await nodes.lead()
    place = urlsplit(cluster.place(RankConfig(2)).meeting_place)
    assert place.hostname == "127.0.0.1"
    assert place.port is not None
    for family, host in ((socket.AF_INET, ""), (socket.AF_INET6, "::")):
        if family is socket.AF_INET or socket.has_dualstack_ipv6():
            socket.create_server((host, place.port), family=family).close()


async def test_members_that_are_reached_by_different_interfaces_are_told_of(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first of them by its rank counts, whichever came first."""
    nodes.topology = nodes.topology._replace(nnodes=3)
    cluster = await nodes.lead()
    nodes.join(rank=2)
    await until(lambda: cluster.missing == [1])
    assert cluster.place(RankConfig(3)).interface == "lo"
    assert not caplog.messages
    nodes.join(rank=1)
    await until(lambda: not cluster.missing)
    ways = iter([Route("10.0.0.1", "eth1", "10.0.0.2"), Route("10.1.0.1", "eth0", "10.1.0.2")])
    monkeypatch.setattr(interfaces, "towards", lambda *_: next(ways))
    assert cluster.place(RankConfig(3)).interface == "eth1"
    assert re.search(r"node 1 \(.*\) by eth1, node 2 \(.*\) by eth0", caplog.text)


async def _silence(*given: object, **named: object) -> None:
    """Say nothing."""


async def test_a_member_that_was_taken_without_an_order_is_not_waited_for(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = await nodes.lead()
    with monkeypatch.context() as patch:
        patch.setattr(cluster, "_send", _silence)
        there = nodes.join()
        await until(lambda: not cluster.missing)
    monkeypatch.setattr(leader, "END_SECONDS", 600)
    monkeypatch.setattr(leader, "SILENT_SECONDS", 600)
    async with asyncio.timeout(DEADLINE):
        await nodes.leading.aclose()
        await there.running


@pytest.mark.parametrize("what", ["_decode", "_send_orders"])
async def test_a_leader_that_hears_or_says_nothing_any_more_ends(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    async def lead() -> None:
        async with leading(nodes.topology, KEYS) as cluster:
            cluster.open(MODEL, 1)
            nodes.join()
            await until(lambda: not cluster.missing)
            monkeypatch.setattr(cluster, what, fail)
            await asyncio.Event().wait()

    monkeypatch.setattr(leader, "END_SECONDS", 0.05)
    async with asyncio.timeout(DEADLINE):
        with pytest.raises(ZeroDivisionError):
            await lead()
