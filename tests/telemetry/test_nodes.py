from __future__ import annotations

from types import SimpleNamespace

from tests.telemetry.test_instruments import samples
from tests.telemetry.test_metrics import IDLE
from tgi_async.telemetry.metrics import Metrics
from tgi_async.telemetry.nodes import NodesUp


def test_the_metric_says_which_node_is_away() -> None:
    nodes = SimpleNamespace(n_nodes=3, missing=[1])
    metrics = Metrics(max_input_tokens=10, max_total_tokens=20, nodes=NodesUp(nodes))

    def shown() -> dict[str, float]:
        values = samples(metrics.expose(IDLE).decode())
        return {label: value for (name, label), value in values.items() if "node_up" in name}

    assert shown() == {"0": 1, "1": 0, "2": 1}
    nodes.missing = []
    assert shown() == {"0": 1, "1": 1, "2": 1}
