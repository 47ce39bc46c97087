from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.api.tiny_tokenizer import tiny_tokenizer
from tests.cluster.conftest import Nodes
from tests.doubles.fake_engine_run import DEADLINE, Collected, Steps, collect, until
from tests.doubles.fake_worker import COMMAND, VARIABLE, Behaviour, expected_tokens
from tests.test_supervisor import ignore
from tgi_async import engine as engines
from tgi_async.backoff import Backoff
from tgi_async.engine import Engine
from tgi_async.generation import GenerationRequest
from tgi_async.wire.messages import BatchConfig, ModelConfig, RankConfig, Sampling, Start
from tgi_async.worker_restarter import Restarts

SLOW = Behaviour(step_seconds=0.02)


@pytest.fixture
async def engine(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Engine]:
    monkeypatch.setenv(VARIABLE, SLOW.environment())
    start = Start(ModelConfig(""), BatchConfig(max_rows=4), ranks=RankConfig(2, n_nodes=2))
    made = Engine(
        tokenizer=tiny_tokenizer(),
        start=start,
        command=COMMAND,
        restarts=Restarts(nodes=await nodes.lead(), backoff=Backoff(first=0.01)),
    )
    yield made
    await made.stop(DEADLINE)


async def test_no_request_is_to_blame_for_a_node_that_is_gone(
    engine: Engine, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single death of workers would be the end of all requests here."""
    monkeypatch.setattr(engines, "MAX_DEATHS", 1)
    there = nodes.join()
    await engine.launch(ignore)
    engine.serve(Steps())
    prompt = tiny_tokenizer().encode("a text")
    stream = engine.submit(GenerationRequest(prompt, Sampling(), max_new_tokens=60))
    await until(lambda: stream.n_emitted > 5)
    await there.leave()
    await until(lambda: engine.worker_restarts == 1)
    nodes.join()
    text: Collected = await collect(stream)
    assert text.ids == expected_tokens(SLOW, prompt, 60)
    assert engine.worker_restarts == 1
