"""What TLS costs the router: processor time of a token in a stream and of a connection.

    python -m benchmarks.tls

The connection code of the server writes pieces of the size of a token's event to a client in
another process, each in a turn of the event loop, with TLS and without, in turns. The certificate,
made by the openssl program, has a key on P-256.
"""

from __future__ import annotations

import asyncio
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import uvloop

from tgi_async.api.exchange import DIRECT
from tgi_async.api.gate import Gate
from tgi_async.certificate import Certificate, CertificateFiles
from tgi_async.listener import answering

N_TOKENS, N_STREAMS, N_CONNECTIONS, ROUNDS = 5000, 16, 300, 3
PIECE = (
    b'data: {"index":1,"token":{"id":88,"text":"y","logprob":-0.5,"special":false},'
    b'"generated_text":null,"details":null}\n\n'
)
CLIENT = """
import asyncio, ssl, sys
port, n, path, certificate = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
context = ssl.create_default_context(cafile=certificate) if certificate else None
async def one():
    reader, writer = await asyncio.open_connection("localhost", port, ssl=context)
    writer.write(f"GET {path} HTTP/1.1\\r\\nHost: a\\r\\nConnection: close\\r\\n\\r\\n".encode())
    while await reader.read(65536): pass
async def main(): await asyncio.gather(*(one() for _ in range(n)))
asyncio.run(main())
"""


async def stream(scope: Any, receive: Any, send: Any) -> None:
    """An application that streams, at /stream, or answers with little."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": PIECE, "more_body": True})
    writer = scope["extensions"][DIRECT]["writer"]
    for _ in range(N_TOKENS if scope["path"] == "/stream" else 0):
        if writer.keeps_up():
            writer.write(PIECE)
            await asyncio.sleep(0)
        else:
            await send({"type": "http.response.body", "body": PIECE, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def seconds(path: str, n_clients: int, files: CertificateFiles | None) -> float:
    """Processor seconds of this process for so many clients."""
    certificate = None if files is None else Certificate(files)
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    trusted = "" if files is None else files.certificate
    async with answering(Gate(), listener, app=stream, certificate=certificate) as http:
        await http.begin()
        before = time.process_time()
        command = (sys.executable, "-c", CLIENT, str(port), str(n_clients), path, trusted)
        process = await asyncio.create_subprocess_exec(*command)
        assert await process.wait() == 0
        return time.process_time() - before


async def measure(folder: str) -> None:
    files = CertificateFiles(f"{folder}/c.pem", f"{folder}/k.pem")
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"]
    out = ["-keyout", files.key, "-out", files.certificate]
    command = ["openssl", "req", "-x509", *key, *subject, *out]
    await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)
    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(ROUNDS):
        for name, given in (("plain", None), ("TLS", files)):
            token = await seconds("/stream", N_STREAMS, given) / (N_STREAMS * N_TOKENS)
            found.setdefault((name, "token"), []).append(token)
            connection = await seconds("/", N_CONNECTIONS, given) / N_CONNECTIONS
            found.setdefault((name, "connection"), []).append(connection)
    for (name, what), values in sorted(found.items()):
        print(f"{name}: {statistics.median(values) * 1e6:.1f} us of processor time a {what}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        uvloop.run(measure(folder))
