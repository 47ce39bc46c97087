"""The server's settings, under TGI's names where TGI has them.

Each field's flag is its name with dashes, its environment variable its name in upper case;
`arguments` reads them. TGI's other settings are in `settings_tgi`.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field
from typing import Any

from tgi_async.certificate import CertificateFiles
from tgi_async.cluster.topology import DEFAULT_PORT, MAX_NODES
from tgi_async.errors import StartError
from tgi_async.images.addresses import Domains
from tgi_async.proxies import Trusted
from tgi_async.telemetry.logs import LEVELS, level_of
from tgi_async.text.tools.formats import NAMES
from tgi_async.wire.messages import MAX_DRAFTS

DTYPES = ("bfloat16", "float16", "float32")
QUANTIZATIONS = (
    "awq",
    "bitsandbytes",
    "bitsandbytes-fp4",
    "bitsandbytes-nf4",
    "compressed-tensors",
    "eetq",
    "exl2",
    "fp8",
    "gguf",
    "gptq",
    "int4",
    "int8",
    "marlin",
    "mxfp4",
)
"""TGI's, but for gguf, int4, int8 and mxfp4, which are ours."""
KV_CACHE_DTYPES = ("fp8_e4m3fn", "fp8_e5m2", "int8")
"""TGI's, but for int8, which is ours."""
TEXT_METHODS = ("suffix", "ngram")
"""Methods of speculation that find drafts in texts."""
MODEL_METHODS = ("medusa", "mlp_speculator")
"""Methods whose drafts are a model's, which the model folder has to be."""
DEFAULT_DRAFTS = 3
"""`speculate` for a method that finds drafts in texts, where only the method is given."""


def _option(
    default: Any,
    group: str,
    help: str,
    *,
    kind: type = str,
    least: int | None = None,
    most: int | None = None,
    choices: tuple[str, ...] | None = None,
    strict: Any = None,
) -> Any:
    """Declare a setting. `strict` is its default with --strict-tgi, where that differs."""
    metadata = {
        "group": group,
        "help": help,
        "kind": kind,
        "least": least,
        "most": most,
        "choices": choices,
        "strict": strict,
    }
    return field(default=default, metadata=metadata)


MODEL, CLUSTER, LIMITS, BATCHING, IMAGES, HTTP, FACE, OPERATION = (
    "model",
    "several nodes for one model",
    "limits of a request",
    "batching and memory",
    "images",
    "HTTP",
    "what clients see",
    "operation",
)
PAYLOAD_LIMIT = 2_000_000
"""TGI's, in bytes."""
PAYLOAD_LIMIT_WITH_IMAGES = 20_000_000
"""A photo is larger than what TGI takes."""
COUNT = 2**31 - 1
SECRETS = ("ssl_keyfile_password",)
"""Settings without a flag, which other users of the machine could read."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The operator's settings. None: found from the model or the machine at start."""

    model_id: str | None = _option(
        None,
        MODEL,
        "a Hub id, a folder or a GGUF file; default: SmolLM2-135M-Instruct, no network needed",
    )
    revision: str | None = _option(None, MODEL, "branch, tag or commit of a Hub model")
    dtype: str | None = _option(
        None,
        MODEL,
        "data type of weights, and of the KV cache without kv-cache-dtype; default: bfloat16",
        choices=DTYPES,
    )
    kv_cache_dtype: str | None = _option(
        None,
        MODEL,
        "data type of the KV cache, in a byte a number: twice the tokens in the same memory; int8 "
        "has a scale for each token and head, and is more exact; default: as dtype, or what the "
        "checkpoint says",
        choices=KV_CACHE_DTYPES,
    )
    quantize: str | None = _option(
        None,
        MODEL,
        "how the weights are quantized, default: as the checkpoint is; of a plain one, while it is "
        "loaded: eetq, fp8, bitsandbytes, -nf4, -fp4, and int8 and int4, with activations in int8; "
        "gguf: keep the blocks of a GGUF file, the embedded model's too, else served in bfloat16",
        choices=QUANTIZATIONS,
    )
    cpu_activations: str = _option(
        "auto",
        MODEL,
        "int8: on a CPU, round what is multiplied with quantized weights to int8, which is faster "
        "and less exact; default: with --quantize int8 and int4 only",
        choices=("auto", "int8"),
    )
    model_impl: str = _option(
        "auto",
        MODEL,
        "code that runs the model; default: the fused decoder where it knows the family",
        choices=("auto", "fused", "transformers"),
    )
    native_kernels: bool = _option(
        False,
        MODEL,
        "compile the C kernels for this very processor at the first start, if there is a compiler; "
        "default: only where the package has none for it",
        kind=bool,
    )
    standby: bool = _option(
        False,
        MODEL,
        "keep a second worker loaded, which takes over at once when the first one dies; it takes "
        "the memory of the weights again, and has no effect on a GPU",
        kind=bool,
    )
    attention: str = _option(
        "auto",
        MODEL,
        "attention kernels on a GPU; flash (the package flash-attn) and varlen (torch's, from "
        "2.13 on) compute prompts by theirs, in pages of 256 tokens; default: triton, pages of 16",
        choices=("auto", "triton", "flash", "varlen"),
    )
    sharded: bool | None = _option(
        None,
        MODEL,
        "spread the model over all visible GPUs; default: true if there are any",
        kind=bool,
    )
    num_shard: int | None = _option(
        None,
        MODEL,
        "processes the model is spread over, of all nodes together; default: one for each visible "
        "GPU, one on a CPU, times nnodes",
        kind=int,
        least=1,
    )
    trust_remote_code: bool = _option(
        False, MODEL, "run the Python code that comes with the model", kind=bool
    )
    rope_scaling: str | None = _option(
        None,
        MODEL,
        "rotary embedding to use instead of the model's, together with rope-factor",
        choices=("linear", "dynamic"),
    )
    rope_factor: float | None = _option(
        None,
        MODEL,
        "how many times longer texts may be than the model's own limit, for rope-scaling",
        kind=float,
    )
    huggingface_hub_cache: str | None = _option(None, MODEL, "folder of downloaded models")
    tokenizer_config_path: str | None = _option(
        None, MODEL, "a tokenizer_config.json whose chat template replaces the model's"
    )
    speculate: int | None = _option(
        None,
        MODEL,
        "most drafts of the tokens to come that a step verifies for a text, 0: none; default: as "
        "many as the heads of a Medusa or MLP speculator model, "
        f"{DEFAULT_DRAFTS} for speculation {' and '.join(TEXT_METHODS)}, else none",
        kind=int,
        least=0,
        most=MAX_DRAFTS,
    )
    speculation: str | None = _option(
        None,
        MODEL,
        "where drafts come from; they never change a text. Default: what a model-id with heads or "
        "a speculator is, else suffix",
        choices=(*TEXT_METHODS, *MODEL_METHODS),
    )

    nnodes: int | None = _option(
        None,
        CLUSTER,
        "machines that the model is spread over, each of which runs this command; default: as many "
        "as torchrun, LeaderWorkerSet or a step of SLURM has started it on, else 1",
        kind=int,
        least=1,
        most=MAX_NODES,
    )
    node_rank: int | None = _option(
        None,
        CLUSTER,
        "number of this one: 0 is the leader, which clients ask, others have no port for them; "
        "default: as for nnodes",
        kind=int,
        least=0,
        most=MAX_NODES - 1,
    )
    master_addr: str | None = _option(
        None,
        CLUSTER,
        "name or address of the leader, under which the others reach it; default: as for nnodes",
    )
    master_port: int | None = _option(
        None,
        CLUSTER,
        f"port of the leader for the other nodes; default: {DEFAULT_PORT}",
        kind=int,
        least=1,
        most=65535,
    )
    cluster_secret_file: str | None = _option(
        None,
        CLUSTER,
        "file with the secret by which the nodes know each other, the same on all; it may be in "
        "the environment variable CLUSTER_SECRET instead",
    )

    max_input_tokens: int | None = _option(
        None, LIMITS, "longest prompt; default: max-total-tokens - 1", kind=int, least=1
    )
    max_input_length: int | None = _option(
        None, LIMITS, "old name of max-input-tokens", kind=int, least=1
    )
    max_total_tokens: int | None = _option(
        None, LIMITS, "longest prompt and output together; default: the model's", kind=int, least=2
    )
    max_best_of: int = _option(
        8,
        LIMITS,
        "most sequences of `best_of`, and most choices of `n`",
        kind=int,
        least=1,
        strict=2,
    )
    max_stop_sequences: int = _option(
        16, LIMITS, "most stop sequences", kind=int, least=0, strict=4
    )
    max_top_n_tokens: int = _option(
        20,
        LIMITS,
        "most `top_n_tokens` and `top_logprobs`",
        kind=int,
        least=0,
        most=100,
        strict=5,
    )
    max_client_batch_size: int = _option(
        32, LIMITS, "most prompts in one /v1/completions request", kind=int, least=1, strict=4
    )

    max_concurrent_requests: int = _option(
        128, BATCHING, "requests served at once; more wait in the queue", kind=int, least=1
    )
    max_queued_requests: int | None = _option(
        None,
        BATCHING,
        "requests that may wait beyond those served at once; more get 429; default: 4 times "
        "max-concurrent-requests, with strict-tgi 0",
        kind=int,
        least=0,
    )
    max_queued_tokens: int | None = _option(
        None,
        BATCHING,
        "most tokens of the prompts that wait, where a request has to wait; more get 429; default: "
        "any number, within the memory for their texts",
        kind=int,
        least=1,
    )
    max_batch_size: int | None = _option(
        None,
        BATCHING,
        "most rows of a step; default, and upper bound: max-concurrent-requests",
        kind=int,
        least=1,
    )
    max_batch_prefill_tokens: int | None = _option(
        None,
        BATCHING,
        "most prompt tokens of a step, at most half of that beside decodes; default: 512 on a CPU, "
        "4096 on a GPU",
        kind=int,
        least=1,
    )
    max_batch_total_tokens: int | None = _option(
        None, BATCHING, "tokens of the KV cache; default: what fits", kind=int, least=2
    )
    kv_cache_memory: int | None = _option(
        None,
        BATCHING,
        "bytes of the KV cache, in all shards together; default on a CPU: a third of the free "
        "memory, at most 4 GiB",
        kind=int,
        least=1,
        most=2**63 - 1,
    )
    cuda_graphs: str | None = _option(
        None,
        BATCHING,
        "numbers of rows, with commas between, whose decode steps a GPU captures as CUDA graphs; "
        "0: none; default: powers of two, then every 32 up to max-batch-size",
    )
    cuda_memory_fraction: float = _option(
        1.0,
        BATCHING,
        "share of a GPU's memory that may be used, of which a tenth stays free; less than 1 where "
        "others use it too",
        kind=float,
    )
    target_inter_token_latency: int | None = _option(
        None,
        BATCHING,
        "milliseconds between two tokens of a text while prompts are computed: chunks of these are "
        "as small as that needs, unless prompts would be computed at less than 0.85 of their rate; "
        "default: 150 on a CPU, 40 on a GPU",
        kind=int,
        least=1,
        most=60_000,
    )
    request_timeout: int | None = _option(
        None,
        BATCHING,
        "seconds that a request may wait and run; clients can shorten it by the header "
        "X-Request-Timeout; default: any number",
        kind=int,
        least=1,
        most=86_400,
    )
    prefix_cache_salt: str = _option(
        "none",
        BATCHING,
        "tenant: no tenant, or API key, finds in the prefix cache what another one's prompts have "
        "left there, and could be told by the time; default: all share it",
        choices=("none", "tenant"),
    )
    validation_workers: int = _option(
        2, BATCHING, "threads that tokenize prompts and render chat templates", kind=int, least=1
    )

    allow_image_domains: tuple[str, ...] = _option(
        (),
        IMAGES,
        "hosts that images are fetched from, with commas between: example.com, *.example.com (all "
        "below it), either with :port, or * for all; default: none, images come in the request",
        kind=tuple,
        strict=("*",),
    )
    allow_private_image_addresses: bool = _option(
        False,
        IMAGES,
        "fetch from private addresses too, for hosts that allow-image-domains names",
        kind=bool,
    )
    max_image_fetch_size: int = _option(
        32 * 1024**2,
        IMAGES,
        "largest image in bytes, as it comes: fetched, or in a request",
        kind=int,
        least=1,
        most=2**40,
        strict=1024**3,
    )
    image_fetch_timeout: int = _option(
        5, IMAGES, "seconds for fetching an image", kind=int, least=1, most=600
    )
    max_images_per_request: int = _option(32, IMAGES, "most images of a request", kind=int, least=0)
    max_image_pixels: int = _option(
        64_000_000, IMAGES, "most pixels of an image", kind=int, least=1
    )
    image_cache_memory: int | None = _option(
        None,
        IMAGES,
        "bytes of prepared images, those of live requests and those that were used last; default: "
        "an eighth of the free memory, at most 2 GiB",
        kind=int,
        least=1,
        most=2**63 - 1,
    )

    hostname: str = _option("0.0.0.0", HTTP, "address to listen on")
    port: int = _option(3000, HTTP, "port to listen on", kind=int, least=0, most=65535)
    unix_socket: str | None = _option(
        None, HTTP, "path of a Unix socket to listen on instead of hostname and port"
    )
    resume_window: int = _option(
        0,
        HTTP,
        "give the events of streams ids, with which a client that lost its connection goes on "
        "(Last-Event-ID); a stream waits for it for so many seconds; default: 0, no ids",
        kind=int,
        least=0,
        most=3600,
    )
    ssl_certfile: str | None = _option(
        None,
        HTTP,
        "certificate in PEM, with those between it and its authority: serve TLS; it is read again "
        "when it changes",
    )
    ssl_keyfile: str | None = _option(
        None,
        HTTP,
        "key of ssl-certfile, whose password is in SSL_KEYFILE_PASSWORD if it is encrypted; "
        "default: it is in ssl-certfile",
    )
    ssl_keyfile_password: str | None = _option(None, HTTP, "password of the key")
    ssl_ca_certs: str | None = _option(
        None, HTTP, "certificates in PEM of the authorities of clients' certificates"
    )
    ssl_cert_reqs: int | None = _option(
        None,
        HTTP,
        "whether clients show a certificate: 0 no, 1 if they have one, 2 they must; default: 2 "
        "with ssl-ca-certs, else 0",
        kind=int,
        least=0,
        most=2,
    )
    root_path: str | None = _option(
        None,
        HTTP,
        "path that the server is below for its clients, as /llm; a proxy may take it off or not",
    )
    forwarded_allow_ips: tuple[str, ...] = _option(
        (),
        HTTP,
        "proxies whose X-Forwarded-* and Forwarded headers count: addresses and networks, `unix` "
        "for the Unix socket, * for whoever connects; default: none",
        kind=tuple,
    )
    api_key: str | None = _option(None, HTTP, "API key that requests must send")
    api_keys_file: str | None = _option(
        None,
        HTTP,
        "file in YAML or JSON with further API keys, their shares and limits; it is read again "
        "when it changes",
    )
    tenant_header: str | None = _option(
        None,
        HTTP,
        "header in which proxies of forwarded-allow-ips name the tenant of a request, who has a "
        "share and a queue of his own",
    )
    cors_allow_origin: tuple[str, ...] = _option(
        (),
        HTTP,
        "origins that browsers may call from, with commas between; default: any",
        kind=tuple,
    )
    payload_limit: int | None = _option(
        None,
        HTTP,
        f"largest request body in bytes; default: {PAYLOAD_LIMIT}, and {PAYLOAD_LIMIT_WITH_IMAGES} "
        "for a model that may take images",
        kind=int,
        least=1,
    )

    strict_tgi: bool = _option(
        False,
        FACE,
        "behave exactly as TGI, also where this server's own behaviour serves clients better",
        kind=bool,
    )
    tool_call_parser: str | None = _option(
        None,
        FACE,
        f"format of the model's tool calls: {', '.join(NAMES)}; default: as its chat template "
        "shows",
        choices=NAMES,
    )
    served_model_name: tuple[str, ...] = _option(
        (),
        FACE,
        "names of the model in /v1/models and in replies, which have the first one; several with "
        "spaces between, or repeated; default: its id",
        kind=tuple,
    )
    disable_grammar_support: bool = _option(
        False, FACE, "refuse grammars, response formats and tool calls", kind=bool
    )
    kserve: bool = _option(False, FACE, "serve the routes of KServe's V2 protocol", kind=bool)

    json_output: bool = _option(False, OPERATION, "log as JSON lines", kind=bool)
    access_log: bool = _option(
        False,
        OPERATION,
        "log a line for each request, but for health checks and /metrics that succeed",
        kind=bool,
    )
    log_level: str = _option("info", OPERATION, f"lowest level that is logged: {', '.join(LEVELS)}")
    log_colorize: bool | None = _option(
        None, OPERATION, "color the log; default: where it is a terminal", kind=bool
    )
    otlp_endpoint: str | None = _option(
        None, OPERATION, "URL of an OpenTelemetry collector, which gets a span for each request"
    )
    otlp_service_name: str = _option(
        "text-generation-inference.router", OPERATION, "name of this server in its spans"
    )
    graceful_termination_timeout: int = _option(
        90, OPERATION, "seconds that requests in progress get after SIGTERM", kind=int, least=0
    )
    shutdown_delay: int = _option(
        0,
        OPERATION,
        "seconds between SIGTERM and graceful-termination-timeout in which /health says 503 and "
        "requests are still taken: as long as a load balancer needs to notice",
        kind=int,
        least=0,
        most=3600,
    )

    def __post_init__(self) -> None:
        if self.max_input_tokens is not None and self.max_input_length is not None:
            raise StartError(
                "Both --max-input-tokens and --max-input-length were given; they are the same "
                "setting, so give only --max-input-tokens."
            )
        if (self.rope_scaling is None) != (self.rope_factor is None):
            raise StartError("--rope-scaling and --rope-factor go together. Give both, or neither.")
        if self.rope_factor is not None and not 1.0 <= self.rope_factor <= 1024.0:
            raise StartError(f"--rope-factor must be from 1 to 1024. Given: {self.rope_factor}.")
        if not 0.0 < self.cuda_memory_fraction <= 1.0:
            raise StartError(
                "--cuda-memory-fraction must be above 0 and at most 1. Given: "
                f"{self.cuda_memory_fraction}."
            )
        if self.graph_sizes is None and self.cuda_graphs is not None:
            raise StartError(
                "--cuda-graphs must be numbers of rows from 1 to 65536 with commas between, or 0. "
                f"Given: {self.cuda_graphs!r}."
            )
        longest, total = self.input_limit, self.max_total_tokens
        if longest is not None and total is not None and longest >= total:
            raise StartError(
                f"--max-input-tokens must be less than --max-total-tokens. Given: {longest} and "
                f"{total}."
            )
        pool = self.max_batch_total_tokens
        if pool is not None and total is not None and total > pool:
            raise StartError(
                f"--max-total-tokens must be at most --max-batch-total-tokens. Given: {total} and "
                f"{pool}."
            )
        _ = self.image_domains, self.trusted_proxies
        self._check_tls()
        self._check_tenant_header()
        root = self.root_path
        if root is not None and (not root.startswith("/") or root.endswith("/")):
            raise StartError(
                "--root-path must be a path that begins with a slash and does not end with one. "
                f"Given: {root!r}."
            )
        if level_of(self.log_level) is None:
            raise StartError(
                f"--log-level must be one of {', '.join(LEVELS)}. Given: {self.log_level!r}."
            )

    def _check_tenant_header(self) -> None:
        header = self.tenant_header
        if header is None:
            return
        if not re.fullmatch(r"[A-Za-z0-9-]{1,64}", header):
            raise StartError(
                "--tenant-header must be the name of a header, of letters, digits and dashes. "
                f"Given: {header!r}."
            )
        if not self.forwarded_allow_ips:
            raise StartError(
                "--tenant-header needs --forwarded-allow-ips, the proxies that may name a tenant."
            )

    def _check_tls(self) -> None:
        if self.ssl_certfile is None:
            for name in ("ssl_keyfile", "ssl_ca_certs"):
                if getattr(self, name) is not None:
                    raise StartError(
                        f"--{name.replace('_', '-')} needs --ssl-certfile, the certificate."
                    )
        if self.ssl_cert_reqs and self.ssl_ca_certs is None:
            raise StartError(
                f"--ssl-cert-reqs {self.ssl_cert_reqs} needs --ssl-ca-certs, the authorities that "
                "clients' certificates are from."
            )

    @property
    def certificate_files(self) -> CertificateFiles | None:
        """Where the certificate is; None: no TLS."""
        if self.ssl_certfile is None:
            return None
        asked = self.ssl_cert_reqs
        if asked is None:
            asked = 0 if self.ssl_ca_certs is None else 2
        return CertificateFiles(
            self.ssl_certfile,
            self.ssl_keyfile or self.ssl_certfile,
            self.ssl_keyfile_password,
            self.ssl_ca_certs,
            (ssl.CERT_NONE, ssl.CERT_OPTIONAL, ssl.CERT_REQUIRED)[asked],
        )

    @property
    def trusted_proxies(self) -> Trusted | None:
        """Whose headers say who asks; None: nobody's. Raises StartError for what is no network."""
        if not self.forwarded_allow_ips:
            return None
        try:
            return Trusted(self.forwarded_allow_ips)
        except ValueError as error:
            raise StartError(f"--forwarded-allow-ips: {error}.") from None

    def payload_limit_for(self, *, images: bool) -> int:
        """Return `payload_limit`, or its default for a model that may take `images`."""
        if self.payload_limit is not None:
            return self.payload_limit
        return PAYLOAD_LIMIT_WITH_IMAGES if images and not self.strict_tgi else PAYLOAD_LIMIT

    @property
    def queue_size(self) -> int:
        """`max_queued_requests`, or its default."""
        if self.max_queued_requests is not None:
            return self.max_queued_requests
        return 0 if self.strict_tgi else 4 * self.max_concurrent_requests

    @property
    def input_limit(self) -> int | None:
        """`max_input_tokens`, under either name."""
        return self.max_input_tokens if self.max_input_tokens is not None else self.max_input_length

    @property
    def image_domains(self) -> Domains:
        """Where images are fetched from. Raises StartError where that is not said in domains."""
        listed = [one.strip() for text in self.allow_image_domains for one in text.split(",")]
        try:
            return Domains(list(filter(None, listed)), private=self.allow_private_image_addresses)
        except ValueError as error:
            raise StartError(f"--allow-image-domains: {error}.") from None

    @property
    def graph_sizes(self) -> list[int] | None:
        """`cuda_graphs` as numbers, empty for 0; None where it is not set or not numbers."""
        if self.cuda_graphs is None:
            return None
        if self.cuda_graphs.strip() == "0":
            return []
        parts = [part.strip() for part in self.cuda_graphs.split(",")]
        if not all(part.isascii() and part.isdigit() and len(part) < 6 for part in parts):
            return None
        sizes = sorted({int(part) for part in parts})
        return sizes if sizes[0] >= 1 and sizes[-1] <= 2**16 else None
