"""What the router and a worker say to each other.

The schema is closed: every frame is one of the structs below, as a MessagePack array whose first
item is the type's tag, and anything else is refused by the typed decoder (`wire.codec`). There are
no extension types, no object hooks and no pickle.

The router owns every decision. A worker keeps a *persistent batch*, a table of rows, and each
`Step` carries only what changed in it: rows released, rows admitted, blocks granted, and how many
tokens each row computes. Prefill, chunk and decode are the same thing with different counts. A
decode row's input is the token that the worker itself sampled in the step before, so the router can
send step N+1 before the tokens of step N have come back.

Token ids and block ids are non-negative integers below 2**31.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

Id = Annotated[int, Meta(ge=0, lt=2**31)]
Count = Annotated[int, Meta(ge=0, lt=2**31)]
Seed = Annotated[int, Meta(ge=0)]
"""Unsigned 64 bits, which is all that MessagePack can carry."""
MAX_BIASES = 1024
"""Most tokens that one request may bias."""
MAX_END_IDS = 1024
"""Most tokens that end one request's text: the model's own, and those that the request names."""
MAX_BANS = 1024
"""Most sequences of tokens that one request may ban."""
MAX_BAN_LENGTH = 64
"""Most tokens of each."""

Ban = Annotated[list[Id], Meta(min_length=1, max_length=MAX_BAN_LENGTH)]


class Frame(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Common settings of every struct that crosses the wire."""


class Sampling(Frame, frozen=True):
    """How one row turns logits into a token.

    Random numbers are a function of (seed, choice, position, purpose), never of the batch.
    Values that change nothing: temperature 1, top_k 0, top_p 1, typical_p 1, min_p 0,
    repetition_penalty 1, the other penalties 0.
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_k: Count = 0
    top_p: float = 1.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    """TGI's: times the share of a token in prompt and output."""
    watermark: bool = False
    seed: Seed = 0
    choice: Count = 0
    logprobs: bool = False
    """Whether the log-probability of each sampled token is wanted."""
    top_n_tokens: Count = 0
    """How many of the likeliest tokens to report at each position, besides the sampled one."""
    min_p: float = 0.0
    """Least probability of a token that is kept, as a share of the likeliest one's."""
    output_frequency_penalty: float = 0.0
    """OpenAI's: times the count of a token in the output."""
    output_presence_penalty: float = 0.0
    """OpenAI's: once for every token that occurs in the output."""
    biased_ids: Annotated[list[Id], Meta(max_length=MAX_BIASES)] = []
    """Distinct tokens whose logits are raised by what `biases` has at the same place."""
    biases: Annotated[list[float], Meta(max_length=MAX_BIASES)] = []
    model_logprobs: bool = False
    """Report log-probabilities as the model gave them, not those of the processed distribution."""
    min_tokens: Count = 0
    """Tokens that the output has before any of `end_ids` is sampled."""
    end_ids: Annotated[list[Id], Meta(max_length=MAX_END_IDS)] = []
    banned: Annotated[list[Ban], Meta(max_length=MAX_BANS)] = []
    """Sequences of tokens that the output does not have: the last token of one is not sampled
    behind the others."""


class Constraint(Frame, frozen=True):
    """A grammar that a row's output follows from its first token on."""

    grammar: str
    """As `grammar.encode` writes it; the router has had it checked."""
    max_new_tokens: Count
    """Of the whole output. Near its end, the shortest way to complete the text is taken."""


class Admit(Frame, frozen=True):
    """A row enters the persistent batch.

    `tokens` are the prompt and, after a preemption or a worker's death, what was already emitted.
    The first `n_cached` of them are in `blocks` already (a prefix-cache hit).
    """

    row: Count
    tokens: list[Id]
    n_prompt: Count
    n_cached: Count
    blocks: list[Id]
    sampling: Sampling
    prompt_logprobs: bool = False
    prompt_top_n_tokens: Count = 0
    """How many of the likeliest tokens to report at each prompt position that is scored."""
    constraint: Constraint | None = None


class Grow(Frame, frozen=True):
    """Blocks appended to a row's block table before this step runs."""

    row: Count
    blocks: list[Id]


class Run(Frame, frozen=True):
    """A row's part of a step: it computes its next `n` tokens.

    The row samples when these are the last of its known tokens, those that a grammar forced
    included.
    """

    row: Count
    n: Annotated[int, Meta(ge=1, lt=2**31)]


class ModelConfig(Frame, frozen=True):
    """Which model, and how it is run."""

    path: str
    dtype: str = ""
    """"bfloat16", "float16" or "float32"; "": what suits the device."""
    implementation: str = "auto"
    """"fused", "transformers", or "auto": the fused decoder where it runs the model."""
    trust_remote_code: bool = False
    max_total_tokens: Count = 0
    """Longest sequence a row may hold; 0: the model's own limit."""
    rope_scaling: str = ""
    """"linear" or "dynamic", by `rope_factor`, in the place of what the model says; "": not."""
    rope_factor: float = 1.0
    quantize: str = ""
    """The quantization that is asked for; "": what the checkpoint says."""


class BatchConfig(Frame, frozen=True):
    """How much is in a step."""

    max_rows: Count
    max_prefill_tokens: Count = 0
    """0 lets the worker choose what suits its device."""


class CacheConfig(Frame, frozen=True):
    """The KV cache."""

    n_blocks: Count = 0
    """Blocks to allocate; 0 lets the worker find how many fit."""
    block_size: Count = 0
    """Positions of a block; 0: what suits the attention."""
    memory: Annotated[int, Meta(ge=0)] = 0
    """Bytes that it may take; 0 lets the worker choose. Ignored when `n_blocks` is given."""


class DeviceConfig(Frame, frozen=True):
    """How a device is used."""

    attention: str = "auto"
    """Name of an attention backend, or "auto": what suits the device."""
    cuda_graphs: list[Count] | None = None
    """Numbers of rows for which a GPU's decode steps are recorded as graphs; None: those that suit
    `max_rows`."""
    cuda_memory_fraction: Annotated[float, Meta(gt=0, le=1)] = 1.0
    """Of a GPU's memory, that this server may use; of it a tenth stays free."""


class RankConfig(Frame, frozen=True):
    """The ranks that a model is spread over."""

    world_size: Annotated[int, Meta(ge=1, lt=2**31)] = 1
    meeting_place: str = ""
    """Where several ranks find each other: `file:///path` of a file that is not there yet, or
    `tcp://host:port` of rank 0."""


class Start(Frame, frozen=True, tag="start"):
    """First frame to a worker: load this model and report how many blocks fit."""

    model: ModelConfig
    batch: BatchConfig
    cache: CacheConfig = CacheConfig()
    device: DeviceConfig = DeviceConfig()
    ranks: RankConfig = RankConfig()
    stop_token_ids: list[Id] = []
    """Tokens by which a text under a grammar may end, besides those that the model's files name:
    the end that the chat template writes."""


class Step(Frame, frozen=True, tag="step"):
    """One forward pass. Applied in the order release, admit, grow, run."""

    step: Count
    release: list[Count]
    admit: list[Admit]
    grow: list[Grow]
    run: list[Run]


class Stop(Frame, frozen=True, tag="stop"):
    """Finish what is queued and exit with status 0."""


class Loading(Frame, frozen=True, tag="loading"):
    """A worker's start-up went on to a new phase, or ended one."""

    phase: str
    seconds: float
    """Duration of the phase that ended; 0 when it has just begun."""
    detail: str = ""


class Ready(Frame, frozen=True, tag="ready"):
    """The worker is warm."""

    n_blocks: Count
    block_size: Count
    max_total_tokens: Count
    """Longest sequence the model itself takes."""
    max_batch_prefill_tokens: Count
    """Most prefill tokens in a step: what was asked for, or what suits the device."""
    device: str
    eos_token_ids: list[Id]
    """Those that end every text: all that the model's files name."""
    vocab_size: Count
    kv_cache_bytes: Annotated[int, Meta(ge=0)]
    weight_bytes: Annotated[int, Meta(ge=0)]
    notes: list[str]
    """What a person should know about this start, e.g. a fallback taken."""
    quantization: str = ""
    """Method and bits of the weights, for a person; "": they are not quantized."""


class Refused(Frame, frozen=True, tag="refused"):
    """The worker cannot serve this model, says why and what to do, and exits."""

    message: str


class TopToken(Frame, frozen=True):
    id: Id
    logprob: float


class Sampled(Frame, frozen=True):
    """The tokens that one row of a step produced, in order."""

    row: Count
    tokens: Annotated[list[Id], Meta(min_length=1)]
    """The sampled one, and those that follow it by the row's grammar whatever is sampled."""
    logprobs: list[float] = []
    """One for each token where they are wanted, else none. A token that could not have been another
    has 0."""
    top: list[list[TopToken]] = []
    """The likeliest tokens at the place of each token; shorter where none are wanted."""
    n_computed: Count = 0
    """How many of `tokens`, from the first on, have their keys and values in the row's blocks. The
    row samples next when it has computed the others."""


class PromptLogprobs(Frame, frozen=True):
    """Log-probabilities of prompt tokens `start`, `start + 1`, ... given what is before each."""

    row: Count
    start: Count
    logprobs: list[float]
    top: list[list[TopToken]] = []
    """The likeliest tokens at each of these positions, best first; empty if none are wanted."""
    ranks: list[Count] = []
    """How many tokens are at least as likely at each position as the one that is there."""


class RowError(Frame, frozen=True):
    """This row failed, alone; the router ends its request and releases it."""

    row: Count
    message: str


class StepDone(Frame, frozen=True, tag="done"):
    """The results of one step. Rows that computed known tokens only do not appear in `sampled`."""

    step: Count
    sampled: list[Sampled]
    prompt_logprobs: list[PromptLogprobs]
    errors: list[RowError]
    forward_seconds: float
    sample_seconds: float
    late: list[Count] = []
    """Rows that were to sample and whose grammar did not say in time what may come next. The last
    of the tokens that they were to compute counts as not computed."""


ToWorker = Start | Step | Stop
ToRouter = Loading | Ready | Refused | StepDone
