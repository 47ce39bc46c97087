from __future__ import annotations

import pytest

from tgi_async.cluster.hostlist import first
from tgi_async.errors import StartError


@pytest.mark.parametrize(
    ("hosts", "found"),
    [
        ("gpu7", "gpu7"),
        ("gpu7,gpu8", "gpu7"),
        ("gpu[003-010,12]-ib,login1", "gpu003-ib"),
        ("gnode[10,20,25,37]", "gnode10"),
        ("nid[001140-001143]", "nid001140"),
        ("r[1-2]n[05-08,10],x", "r1n05"),
        ("node-a.cluster.example,node-b", "node-a.cluster.example"),
        ("ip-10-0-0-[12,17]", "ip-10-0-0-12"),
        ("[1-3]", "1"),
    ],
)
def test_the_first_host_keeps_its_zeros(hosts: str, found: str) -> None:
    assert first(hosts) == found


@pytest.mark.parametrize("hosts", ["", ",gpu1", "gpu[1-2", "gpu]1", "gpu[]", "gpu[a-b]", "gpu[1,]"])
def test_what_is_no_list_is_refused(hosts: str) -> None:
    with pytest.raises(StartError, match=r"SLURM_STEP_NODELIST is no list of hosts.*--master-addr"):
        first(hosts)
