"""A GGUF file of a Llama small enough to write in a test, and what should come out of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
from tokenizers.pre_tokenizers import ByteLevel

Array = npt.NDArray[np.float32]

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INNER, BLOCKS = 256, 4, 2, 64, 512, 2

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w"]
TOKENS = [*SPECIAL, *sorted(ByteLevel.alphabet()), "he", "ll", "hell", "hello", "Ġw"]


@dataclass
class Tiny:
    """The path of the file, and its tensors under transformers' names and in its row order."""

    path: Path
    tensors: dict[str, Array]


def write_tiny_gguf(
    path: Path,
    *,
    architecture: str = "llama",
    pre: str = "smollm",
    quantization: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.Q8_0,
    tied: bool = True,
    extra_tensor: str | None = None,
    extra_uint32: str | None = None,
    add_bos_token: bool | None = False,
    eos: int = 2,
) -> Tiny:
    """Write a tiny Llama to `path`, its linear weights quantized."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(BLOCKS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(50000.0)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-5)
    if extra_uint32:
        writer.add_uint32(extra_uint32, 4)
    add_tokenizer(writer, pre=pre, add_bos_token=add_bos_token, eos=eos)

    random = np.random.default_rng(0)
    expected: dict[str, Array] = {}

    def add(name: str, theirs: str, shape: tuple[int, ...], heads: int | None = None) -> None:
        values = random.standard_normal(shape, dtype=np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, values)
            expected[theirs] = values
            return
        packed = quantized(values, quantization)
        expected[theirs] = gguf.dequantize(packed, quantization)
        if heads is not None:
            # As llama.cpp's converter does, a row at a time: rows stay whole, so quantizing
            # before or after is the same.
            half = shape[0] // heads // 2
            packed = packed[
                [
                    head * 2 * half + pair + part * half
                    for head in range(heads)
                    for pair in range(half)
                    for part in (0, 1)
                ]
            ]
        writer.add_tensor(name, packed, raw_dtype=quantization)

    add("token_embd.weight", "model.embed_tokens.weight", (len(TOKENS), HIDDEN))
    for i in range(BLOCKS):
        ours, layer = f"blk.{i}", f"model.layers.{i}"
        q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
        add(f"{ours}.attn_norm.weight", f"{layer}.input_layernorm.weight", (HIDDEN,))
        add(f"{ours}.attn_q.weight", f"{layer}.self_attn.q_proj.weight", (q, HIDDEN), HEADS)
        add(f"{ours}.attn_k.weight", f"{layer}.self_attn.k_proj.weight", (kv, HIDDEN), KV_HEADS)
        add(f"{ours}.attn_v.weight", f"{layer}.self_attn.v_proj.weight", (kv, HIDDEN))
        add(f"{ours}.attn_output.weight", f"{layer}.self_attn.o_proj.weight", (HIDDEN, q))
        add(f"{ours}.ffn_norm.weight", f"{layer}.post_attention_layernorm.weight", (HIDDEN,))
        add(f"{ours}.ffn_gate.weight", f"{layer}.mlp.gate_proj.weight", (INNER, HIDDEN))
        add(f"{ours}.ffn_up.weight", f"{layer}.mlp.up_proj.weight", (INNER, HIDDEN))
        add(f"{ours}.ffn_down.weight", f"{layer}.mlp.down_proj.weight", (HIDDEN, INNER))
    add("output_norm.weight", "model.norm.weight", (HIDDEN,))
    if not tied:
        add("output.weight", "lm_head.weight", (len(TOKENS), HIDDEN))
    if extra_tensor:
        add(extra_tensor, extra_tensor, (HIDDEN,))

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Tiny(path, expected)


def quantized(values: Array, quantization: gguf.GGMLQuantizationType) -> npt.NDArray[np.generic]:
    """`values` as blocks of `quantization`, or any blocks of those that gguf can only undo."""
    try:
        packed: npt.NDArray[np.generic] = gguf.quantize(values, quantization)
    except NotImplementedError:
        weights, n_bytes = gguf.GGML_QUANT_SIZES[quantization]
        shape = (*values.shape[:-1], values.shape[-1] // weights * n_bytes)
        # Below 60, so that no scale among the bytes is infinite.
        return np.random.default_rng(values.size).integers(0, 60, shape, dtype=np.uint8)
    return packed


def add_tokenizer(
    writer: gguf.GGUFWriter,
    *,
    pre: str = "smollm",
    add_bos_token: bool | None = False,
    eos: int = 2,
) -> None:
    """A byte-level tokenizer of a few tokens."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(eos)
    writer.add_pad_token_id(2)
    if add_bos_token is not None:
        writer.add_add_bos_token(add_bos_token)
    writer.add_chat_template(TEMPLATE)
