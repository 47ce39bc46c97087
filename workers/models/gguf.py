"""A GGUF file of the llama family, read as the files that the rest of the server understands.

GGUF is llama.cpp's format: metadata, then quantized tensors under llama.cpp's names. Its
converter also permutes the rows of the query and key projections, because llama.cpp rotates
neighbouring pairs of a head where transformers rotates its two halves; that is undone here.
Anything that this reader was not written for is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers.models.errors import ModelUnavailable

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from gguf import ReaderTensor

ARCHITECTURE = "llama"

QUANTIZATIONS = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")

TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}

BLOCK_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

REFUSED_KEYS = {
    "llama.expert_count": "a mixture of experts",
    "llama.rope.scaling.type": "rotary scaling",
    "llama.rope.scaling.factor": "rotary scaling",
    "llama.attention.sliding_window": "a sliding window",
}
"""Metadata that would change the model's arithmetic in a way `config` does not say."""


class GgufModel:
    """The parts of one GGUF file.

    Raises `ModelUnavailable` when the file is not GGUF or holds something not supported here.
    """

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader

        self.path = path
        try:
            self._reader = GGUFReader(path)
        except (ValueError, IndexError, KeyError, OSError) as error:
            raise ModelUnavailable(f"{path} cannot be read as a GGUF file: {error}") from error
        self._check()

    def get(self, key: str, default: Any = None) -> Any:
        """The metadata value under `key`: a str, bool, int, float or list of one of them."""
        field = self._reader.get_field(key)
        return default if field is None else field.contents()

    def require(self, key: str) -> Any:
        """As `get`, for a value that the model cannot be served without."""
        value = self.get(key)
        if value is None:
            raise self.unsupported(f"it has no {key}")
        return value

    def unsupported(self, reason: str) -> ModelUnavailable:
        """The error that refuses this file for `reason`."""
        return ModelUnavailable(f"the GGUF file {self.path} is not supported: {reason}")

    def _check(self) -> None:
        architecture = self.require("general.architecture")
        if architecture != ARCHITECTURE:
            raise self.unsupported(
                f"its architecture is {architecture!r}, and only {ARCHITECTURE!r} is read"
            )
        for key, feature in REFUSED_KEYS.items():
            if self.get(key) not in (None, 0, "none"):
                raise self.unsupported(f"it has {feature} ({key})")
        for tensor in self._reader.tensors:
            self._name(tensor.name)
            if tensor.tensor_type.name not in QUANTIZATIONS:
                raise self.unsupported(
                    f"tensor {tensor.name} is quantized as {tensor.tensor_type.name}; "
                    f"read are {', '.join(QUANTIZATIONS)}"
                )

    def _name(self, name: str) -> str:
        """The name that transformers' Llama has for the tensor that llama.cpp calls `name`."""
        if name in TENSORS:
            return TENSORS[name]
        block = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
        if block is None or block[2] not in BLOCK_TENSORS:
            raise self.unsupported(f"it has a tensor {name}, which a plain Llama has not")
        return f"model.layers.{block[1]}.{BLOCK_TENSORS[block[2]]}.weight"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor under transformers' name, in the order of the file."""
        # GGUF lists dimensions from the innermost outwards.
        return {
            self._name(tensor.name): tuple(int(size) for size in reversed(tensor.shape))
            for tensor in self._reader.tensors
        }

    def tensors(self) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
        """Every tensor under transformers' name, dequantized to float32, in the file's order."""
        for tensor in self._reader.tensors:
            yield self._name(tensor.name), self._values(tensor)

    def _values(self, tensor: ReaderTensor) -> npt.NDArray[np.float32]:
        import gguf
        import numpy as np

        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        heads = {
            "attn_q": self.require("llama.attention.head_count"),
            "attn_k": self._kv_heads,
        }.get(tensor.name.split(".")[-2])
        return values if heads is None else unpermute(values, heads)

    @property
    def _kv_heads(self) -> int:
        heads: int = self.get("llama.attention.head_count_kv") or self.require(
            "llama.attention.head_count"
        )
        return heads

    def config(self) -> dict[str, object]:
        """What transformers keeps in `config.json`."""
        hidden = self.require("llama.embedding_length")
        heads = self.require("llama.attention.head_count")
        head_dim = self.get("llama.attention.key_length") or hidden // heads
        if self.get("llama.rope.dimension_count", head_dim) != head_dim:
            raise self.unsupported("it rotates only a part of each head")
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "attention_bias": False,
            "mlp_bias": False,
            "hidden_act": "silu",
            "hidden_size": hidden,
            "intermediate_size": self.require("llama.feed_forward_length"),
            "num_hidden_layers": self.require("llama.block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._kv_heads,
            "head_dim": head_dim,
            "max_position_embeddings": self.require("llama.context_length"),
            "rms_norm_eps": _shortest(self.require("llama.attention.layer_norm_rms_epsilon")),
            "rope_theta": _shortest(self.get("llama.rope.freq_base", 10000.0)),
            "tie_word_embeddings": "lm_head.weight" not in self.shapes,
            "vocab_size": self.shapes["model.embed_tokens.weight"][0],
            "dtype": "bfloat16",
            **self.special_token_ids(),
        }

    def special_token_ids(self) -> dict[str, int]:
        """`bos_token_id`, `eos_token_id` and `pad_token_id`, those that the file names."""
        named = {"bos": "bos", "eos": "eos", "pad": "padding"}
        ids = {name: self.get(f"tokenizer.ggml.{key}_token_id") for name, key in named.items()}
        return {f"{name}_token_id": id_ for name, id_ in ids.items() if id_ is not None}


def unpermute(rows: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Rows [heads * head_dim, hidden] from llama.cpp's order within a head to transformers'.

    llama.cpp stores (x0, y0, x1, y1, ...) where transformers stores (x0, x1, ..., y0, y1, ...).
    """
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _shortest(value: float) -> float:
    """The shortest decimal that is the same float32: 1e-05 rather than 9.999999747378752e-06."""
    import numpy as np

    return float(str(np.float32(value)))
