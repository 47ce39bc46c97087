"""The messages between the router and a worker.

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

from typing import Annotated, Literal

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
MAX_DRAFTS = 64
"""Most drafts of a row in a step."""
MAX_BAN_LENGTH = 64
"""Most tokens of each such sequence."""

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
    """Whether to report the log-probability of each sampled token."""
    top_n_tokens: Count = 0
    """How many of the likeliest tokens to report at each position, besides the sampled one."""
    min_p: float = 0.0
    """Least probability of a token that is kept, as a share of the likeliest one's."""
    output_frequency_penalty: float = 0.0
    """OpenAI's: times the count of a token in the output."""
    output_presence_penalty: float = 0.0
    """OpenAI's: once for every token that occurs in the output."""
    biased_ids: Annotated[list[Id], Meta(max_length=MAX_BIASES)] = []
    """Distinct tokens to whose logits the values of `biases` at the same index are added."""
    biases: Annotated[list[float], Meta(max_length=MAX_BIASES)] = []
    model_logprobs: bool = False
    """Report log-probabilities as the model gave them, not those of the processed distribution."""
    min_tokens: Count = 0
    """Tokens that the output has before any of `end_ids` is sampled."""
    end_ids: Annotated[list[Id], Meta(max_length=MAX_END_IDS)] = []
    banned: Annotated[list[Ban], Meta(max_length=MAX_BANS)] = []
    """Sequences of tokens that must not occur in the output: the last token of each is not sampled
    after the others."""


class Constraint(Frame, frozen=True):
    """A grammar that constrains a row's output from its first token on."""

    grammar: str
    """Encoded by `grammar.encode`, and checked by the router."""
    max_new_tokens: Count
    """Most tokens of the whole output. Near its end, the shortest way to complete the text is
    taken."""


class Span(Frame, frozen=True):
    """Positions `start` to `end - 1` of a prompt."""

    start: Count
    end: Count


class PixelArray(Frame, frozen=True):
    """An array in a file of them, in C order."""

    name: str
    """As the model's code names its input."""
    dtype: str
    """As numpy names it."""
    shape: list[Count]
    offset: Count
    """Of its first byte in the file."""


class Image(Frame, frozen=True):
    """An image of a prompt, ready for the model's encoder."""

    digest: Annotated[bytes, Meta(min_length=16, max_length=16)]
    """Of the pixels and of what made them: equal ones have the same encoding."""
    start: Count
    """Position of the first of its placeholders."""
    end: Count
    """Position behind the last of them. Other tokens may lie between."""
    path: str
    """File of its arrays, which exists as long as the request."""
    arrays: list[PixelArray]


class Admit(Frame, frozen=True):
    """A scheduler's `Request` enters the persistent batch as a row.

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
    """How many of the likeliest tokens to report at each prompt position, where
    `prompt_logprobs`."""
    constraint: Constraint | None = None
    tenant: str = ""
    """Whose the request is. Drafts may come from earlier answers of the same tenant."""
    images: list[Image] = []
    """In order of position."""
    spans: list[Span] = []
    """Positions that attend to each other in both directions, in order and apart from each other.
    Each of them is computed in one step."""


class Grow(Frame, frozen=True):
    """Blocks appended to a row's block table before this step runs."""

    row: Count
    blocks: list[Id]


class Run(Frame, frozen=True):
    """A row's part of a step: computes its next `n` tokens.

    The row samples when these are the last of its known tokens, those that a grammar forced
    included. Where it has fewer than `n`, as many drafts as are missing, or less, are verified
    behind them.
    """

    row: Count
    n: Annotated[int, Meta(ge=1, lt=2**31)]


class ModelConfig(Frame, frozen=True):
    """The model and how to run it."""

    path: str
    dtype: str = ""
    """"bfloat16", "float16" or "float32"; "": the device's best."""
    implementation: str = "auto"
    """"fused", "transformers", or "auto": the fused decoder where it runs the model."""
    trust_remote_code: bool = False
    max_total_tokens: Count = 0
    """Longest sequence a row may hold; 0: the model's own limit."""
    rope_scaling: str = ""
    """"linear" or "dynamic", by `rope_factor`, instead of the model's own; "": the model's."""
    rope_factor: float = 1.0
    quantize: str = ""
    """The quantization that is asked for; "": what the checkpoint says."""
    kv_cache_dtype: str = ""
    """"fp8_e4m3fn", "fp8_e5m2" or "int8"; "": what the checkpoint says, else the model's dtype."""
    round_activations: bool = False
    """To int8, for all weights in integer codes; on a CPU, in bfloat16."""


class BatchConfig(Frame, frozen=True):
    """The sizes of a step."""

    max_rows: Count
    max_prefill_tokens: Count = 0
    """0 lets the worker choose what suits its device."""


class StepCost(Frame, frozen=True):
    """What a step took at warm-up."""

    n_tokens: Count
    seconds: float


class SpeculationConfig(Frame, frozen=True):
    """Drafts of the tokens to come, which steps verify."""

    max_drafts: Annotated[int, Meta(ge=0, le=MAX_DRAFTS)] = 0
    """Most of them for a row in a step; 0: none, or with a `path` as many as it has heads."""
    method: str = ""
    """"ngram", "suffix", "medusa" or "mlp_speculator"; "": suffix, or what the `path` is."""
    path: str = ""
    """Folder of the checkpoint of a method that has one."""
    decode_costs: list[StepCost] = []
    """What a worker that was here before measured; none: they are to be measured."""


class CacheConfig(Frame, frozen=True):
    """The KV cache."""

    n_blocks: list[Count] = []
    """Blocks to allocate for each cache group; none lets the worker find how many fit."""
    block_size: Count = 0
    """Positions of a block; 0: what suits the attention."""
    memory: Annotated[int, Meta(ge=0)] = 0
    """Bytes that it may take; 0 lets the worker choose. Ignored when `n_blocks` is given."""


class DeviceConfig(Frame, frozen=True):
    """How to use a device."""

    attention: str = "auto"
    """Name of an attention backend, or "auto": the device's best."""
    cuda_graphs: list[Count] | None = None
    """Batch sizes whose decode steps a GPU captures as CUDA graphs; None: chosen by `max_rows`."""
    cuda_memory_fraction: Annotated[float, Meta(gt=0, le=1)] = 1.0
    """Share of a GPU's memory that this server may use; a tenth of it stays free."""
    native_kernels: bool = False
    """Compile the C kernels for this very processor, rather than use those that the wheel has."""


PLACE_TAKEN = 75
"""Exit status of rank 0 where another program has taken the port at which ranks were to meet."""


class RankConfig(Frame, frozen=True):
    """The ranks that a model is spread over."""

    world_size: Annotated[int, Meta(ge=1, lt=2**31)] = 1
    meeting_place: str = ""
    """Where the ranks meet: `file:///path` of a file that does not exist yet, or `tcp://host:port`
    of rank 0."""
    n_nodes: Annotated[int, Meta(ge=1, lt=2**31)] = 1
    """Machines that have as many ranks each, the first ones on the first machine."""
    interface: str = ""
    """By which network interface this machine reaches the others; "": any."""

    @property
    def n_here(self) -> int:
        """Ranks on each machine."""
        return self.world_size // self.n_nodes


class Start(Frame, frozen=True, tag="start"):
    """First frame to a worker: load this model and report how many blocks fit."""

    model: ModelConfig
    batch: BatchConfig
    cache: CacheConfig = CacheConfig()
    device: DeviceConfig = DeviceConfig()
    ranks: RankConfig = RankConfig()
    stop_token_ids: list[Id] = []
    """Tokens that may end a text under a grammar, besides those of the model's files: the end that
    the chat template writes."""
    speculation: SpeculationConfig = SpeculationConfig()
    target_inter_token_latency: float = 0.0
    """Seconds between two tokens of a text while prompts are computed; 0: what suits the device."""
    beside: Annotated[int, Meta(ge=0)] = 0
    """Bytes that another worker, which serves meanwhile, may take: the model is loaded only where
    there is room for them and for its weights. 0: there is no other one."""


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
    """A phase of a worker's start begins or ends."""

    phase: str
    seconds: float
    """Duration of the phase that ended; 0 when it has just begun."""
    detail: str = ""


CacheKind = Literal["full"]
"""What layers keep of a text. "full": a key and a value for every position, those outside a layer's
window included."""


class CachePool(Frame, frozen=True):
    """The blocks of a cache group: of layers that keep the same."""

    n_blocks: Count
    kind: CacheKind = "full"


class Ready(Frame, frozen=True, tag="ready"):
    """The worker is warm."""

    pools: Annotated[list[CachePool], Meta(min_length=1)]
    """Of each cache group."""
    block_size: Count
    max_total_tokens: Count
    """Longest sequence the model itself takes."""
    max_batch_prefill_tokens: Count
    """Most prefill tokens in a step: as set, or what suits the device."""
    device: str
    eos_token_ids: list[Id]
    """Tokens that end every text: all that the model's files name."""
    vocab_size: Count
    kv_cache_bytes: Annotated[int, Meta(ge=0)]
    weight_bytes: Annotated[int, Meta(ge=0)]
    notes: list[str]
    """What the operator should know about this start, e.g. a fallback taken."""
    quantization: str = ""
    """Method and bits of the weights, as text; "": they are not quantized."""
    kv_cache_dtype: str = ""
    """What keys and values are stored as."""
    max_drafts: Annotated[int, Meta(ge=0, le=MAX_DRAFTS)] = 0
    """Most drafts that are verified behind a decoding row's token in a step."""
    speculation: str = ""
    """The method that drafts; "" for none."""
    prefill_costs: list[StepCost] = []
    """Of one chunk of a prompt, by its tokens, ascending; none where it was not measured."""
    decode_costs: list[StepCost] = []
    """Of a step of decodes, by its positions, ascending; none where they do not matter."""
    target_inter_token_latency: float = 0.0
    """In seconds: what was asked for, or what suits the device."""
    takes_images: bool = False
    """Whether prompts may hold images."""

    @property
    def n_blocks(self) -> int:
        """Blocks that a text may have in every group."""
        return min(pool.n_blocks for pool in self.pools)


class Refused(Frame, frozen=True, tag="refused"):
    """The worker cannot serve this model; it gives the reason and what to do, and exits."""

    message: str


class TopToken(Frame, frozen=True):
    """One of the likeliest tokens at a position."""

    id: Id
    logprob: float


class Sampled(Frame, frozen=True):
    """The tokens that one row of a step produced, in order."""

    row: Count
    tokens: Annotated[list[Id], Meta(min_length=1)]
    """Accepted drafts, the sampled token, and the jump-forward tokens of the row's grammar after
    it."""
    logprobs: list[float] = []
    """One for each token where wanted, else empty. A token that was the only one allowed has 0."""
    top: list[list[TopToken]] = []
    """The likeliest tokens at the place of each token; shorter where not wanted."""
    n_computed: Count = 0
    """How many of `tokens`, from the first on, have their keys and values in the row's blocks:
    accepted drafts. The row samples next when it has computed the others."""
    n_drafts: Count = 0
    """How many drafts were verified."""


class PromptLogprobs(Frame, frozen=True):
    """Log-probabilities of prompt tokens `start`, `start + 1`, ... given what is before each."""

    row: Count
    start: Count
    logprobs: list[float]
    top: list[list[TopToken]] = []
    """The likeliest tokens at each of these positions, best first; empty if not wanted."""
    ranks: list[Count] = []
    """The rank of the token at each position: how many tokens are at least as likely."""


class RowError(Frame, frozen=True):
    """The row failed, and no other; the router ends its request and releases it."""

    row: Count
    message: str


class Encoded(Frame, frozen=True):
    """Images that went through the model's encoder in a step."""

    n: Count
    seconds: float


class StepDone(Frame, frozen=True, tag="done"):
    """The results of one step. Rows that computed known tokens only do not appear in `sampled`."""

    step: Count
    sampled: list[Sampled]
    prompt_logprobs: list[PromptLogprobs]
    errors: list[RowError]
    forward_seconds: float
    sample_seconds: float
    masks_not_ready: list[Count] = []
    """Rows that were to sample and whose grammar's mask was not ready in time. The last of the
    tokens that they were to compute counts as not computed."""
    encoded: Encoded | None = None
    """None in most steps."""


ToWorker = Start | Step | Stop
ToRouter = Loading | Ready | Refused | StepDone
