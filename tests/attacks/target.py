"""The whole router over a fake worker, in this process: what attacks are sent to."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import pytest
import uvicorn

from tests.api.conftest import CHATML, NO_ADVICE, Settings
from tests.doubles.fake_engine_run import DEADLINE, Running, running, until
from tests.doubles.fake_images import FakeImages, family, vision_inner, vision_tokenizer
from tests.doubles.fake_worker import Behaviour
from tests.helpers.certificates import Pair
from tgi_async import connection
from tgi_async.api import body
from tgi_async.api.access_log import AccessLog
from tgi_async.api.app import create_app
from tgi_async.certificate import Certificate, CertificateFiles
from tgi_async.connection import Connection
from tgi_async.errors import ValidationError
from tgi_async.grammar.checker import GrammarChecker
from tgi_async.handshake import secured
from tgi_async.images.images import Images, ImageSource, ReadyImage
from tgi_async.telemetry.logs import TextFormatter
from tgi_async.telemetry.metrics import Metrics
from tgi_async.telemetry.observer import Observer
from tgi_async.text.chat import ChatTemplate

WITNESS = {
    "inputs": "A witness beside them",
    "parameters": {"max_new_tokens": 24, "ignore_eos": True, "do_sample": False},
}
PRINTABLE = tuple(range(33, 127))
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r\n]*\r\n")


class Errors(logging.Handler):
    """Keeps what is logged as an error, or with a traceback."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        if record.levelno >= logging.ERROR or record.exc_info:
            self.found.append(line)
        elif "\n" in line or "\x1b" in line or not line.isprintable():
            self.found.append(f"a client wrote to the log: {line!r}")


class Pictures(FakeImages):
    """Refuses an URL that was spoiled, as decoding an image does."""

    def _one(self, source: ImageSource) -> ReadyImage:
        try:
            found = super()._one(source)
        except (ValueError, OverflowError):
            raise ValidationError("it is no image", param=source.field) from None
        if not 0 < found.prepared.n_tokens < 100:
            raise ValidationError("it is too large", param=source.field)
        return found


class Target:
    """A server, by its address, and what became of it."""

    def __init__(
        self, server: uvicorn.Server, served: Running, errors: Errors, own: Pair | None
    ) -> None:
        self.address: tuple[str, int] = server.servers[0].sockets[0].getsockname()[:2]
        self.state = server.server_state
        self._tls: dict[str, Any] = {}
        if own is not None:
            self._tls = {"ssl": own.client(), "server_hostname": "localhost"}
        self.engine = served.engine
        self.errors = errors

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*self.address, **self._tls)

    async def send(self, request: bytes, seconds: float = 3 * DEADLINE) -> bytes:
        """All that is answered on a connection of its own until the server closes it."""
        reader, writer = await self.connect()
        try:
            writer.write(request)
            async with asyncio.timeout(seconds):
                with suppress(ConnectionError):
                    return await reader.read()
                return b""
        finally:
            writer.transport.abort()

    def is_idle(self) -> bool:
        engine = self.engine
        return not (engine.n_running or engine.n_waiting or len(engine._streams))


def replies(answer: bytes) -> list[tuple[int, bytes, bytes]]:
    """Status, head and body of each reply. Raises AssertionError where they are not HTTP/1.1."""
    found = []
    while answer:
        begun = _STATUS.match(answer)
        assert begun, answer[:200]
        head, blank, rest = answer.partition(b"\r\n\r\n")
        assert blank, answer[:200]
        status = int(begun[1])
        if length := re.search(rb"\r\ncontent-length: (\d+)", head, re.I):
            n = int(length[1])
        elif b"\r\ntransfer-encoding: chunked" in head.lower():
            n, rest = _joined(rest)
        else:
            n = 0 if status < 200 or status == 204 else len(rest)
        text, answer = rest[:n], rest[n:]
        if len(text) < n:
            # The reply to a HEAD has the length of the other one's body.
            assert not text, answer[:200]
        found.append((status, head, text))
    return found


def _joined(chunks: bytes) -> tuple[int, bytes]:
    """The length of a chunked body, and that body with what is behind it."""
    joined = b""
    while True:
        size, newline, rest = chunks.partition(b"\r\n")
        assert newline, chunks[:100]
        n = int(size, 16)
        assert rest[n : n + 2] == b"\r\n", chunks[:100]
        joined, chunks = joined + rest[:n], rest[n + 2 :]
        if n == 0:
            return len(joined), joined + chunks


@asynccontextmanager
async def target(
    folder: Path,
    patch: pytest.MonkeyPatch,
    *,
    seconds: float = 1.0,
    own: Pair | None = None,
    **changed: Any,
) -> AsyncIterator[Target]:
    """A server with every route, whose clients get `seconds` for a head, and for a body.

    With a certificate of its `own` it speaks TLS.
    """
    for module, name in ((connection, "HEAD_SECONDS"), (connection, "BODY_SECONDS")):
        patch.setattr(module, name, seconds)
    patch.setattr(body, "BODY_SECONDS", seconds)
    settings = Settings(
        kserve=True,
        max_concurrent_requests=64,
        max_input_tokens=600,
        max_total_tokens=640,
        payload_limit=60_000,
        resume_window=1,
        sampling_defaults=NO_ADVICE,
    )
    for name, value in changed.items():
        setattr(settings, name, value)
    tokens = folder / "tokenizer"
    tokens.mkdir()
    inner = vision_inner()
    inner.save(str(tokens / "tokenizer.json"))
    behaviour = Behaviour(
        n_blocks=4096,
        vocab_size=inner.get_vocab_size(),
        tokens=PRINTABLE,
        takes_images=True,
        max_total_tokens=settings.max_total_tokens,
    )
    errors = Errors()
    errors.setFormatter(TextFormatter(colorize=False))
    # Others would keep all that is logged.
    root = logging.getLogger()
    patch.setattr(root, "handlers", [errors])
    patch.setattr(root, "level", logging.INFO)
    checker = GrammarChecker(str(tokens), inner.get_vocab_size(), [257], n_processes=1)
    metrics = Metrics(
        max_input_tokens=settings.max_input_tokens, max_total_tokens=settings.max_total_tokens
    )
    async with running(
        behaviour,
        folder,
        max_rows=64,
        tokenizer=vision_tokenizer(),
        launch=False,
        deadline=None,
    ) as served:
        await served.engine.launch(lambda loading: None)
        served.engine.serve(metrics)
        app = create_app(
            engine=served.engine,
            tokenizer=vision_tokenizer(),
            chat_template=ChatTemplate(CHATML, {}),
            limits=settings.limits,
            metrics=metrics,
            checker=checker,
            images=cast(Images, Pictures(family())),
        )
        async with app.router.lifespan_context(app):
            config = uvicorn.Config(
                AccessLog(Observer(app, None)),
                port=0,
                http=secured(Certificate(CertificateFiles(*own))) if own else Connection,  # type: ignore[arg-type]
                lifespan="off",
                log_config=None,
                access_log=False,
                timeout_keep_alive=1,
            )
            server = uvicorn.Server(config)
            server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
            serving = asyncio.create_task(server.serve())
            await until(lambda: server.started)
            found = Target(server, served, errors, own)
            try:
                yield found
                await until(found.is_idle)
                assert served.engine.used_blocks == 0
                assert served.engine.worker_restarts == 0, errors.found
            finally:
                server.should_exit = True
                await serving
