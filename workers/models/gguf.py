"""A GGUF file, read as the files that the rest of the server understands.

GGUF is llama.cpp's format: metadata, then quantized tensors under llama.cpp's names. What each
architecture needs is in `gguf_architectures`; anything that is not written there is refused by
name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from workers.errors import ModelUnavailable
from workers.models.gguf_architectures import (
    ARCHITECTURES,
    BLOCKS,
    EACH,
    QUANTIZATIONS,
    REFUSED,
    TENSORS,
)
from workers.models.gguf_rope import rope_parameters
from workers.models.gguf_values import shortest
from workers.models.safetensors_file import Entry

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from gguf import GGMLQuantizationType


class _Tensor(NamedTuple):
    """A tensor of the model."""

    name: str
    """In transformers."""
    part: str
    """What llama.cpp calls it within its layer."""
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    data: npt.NDArray[Any]

    @property
    def stored(self) -> str:
        """What it is in a file that keeps blocks, by safetensors' names; U8: in such."""
        kind, is_matrix = self.kind.name, len(self.shape) == 2
        if is_matrix and kind in BLOCKS:
            return "U8"
        if is_matrix and kind == "F16":
            return "F16"
        return "F32" if kind in ("F32", "F16") else "BF16"


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
        self.name: str = self.require("general.architecture")
        if self.name not in ARCHITECTURES:
            raise self.unsupported(
                f"its architecture is {self.name!r}, and read are {', '.join(ARCHITECTURES)}; "
                "use the model's safetensors, as its makers published it"
            )
        self._architecture = ARCHITECTURES[self.name]
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
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

    def setting(self, key: str, default: Any = None) -> Any:
        """As `get`, for a key below the architecture's name. A list of one value is that value."""
        value = self.get(f"{self.name}.{key}", default)
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise self.unsupported(f"its layers differ ({self.name}.{key} is {value})")
            value = value[0]
        return value

    def require_setting(self, key: str) -> Any:
        """As `setting`, for a value that the model cannot be served without."""
        value = self.setting(key)
        if value is None:
            raise self.unsupported(f"it has no {self.name}.{key}")
        return value

    def has(self, tensor: str) -> bool:
        """Whether there is a tensor that llama.cpp calls so."""
        return tensor in self._tensors

    def values(self, tensor: str) -> npt.NDArray[np.float32]:
        """The tensor that llama.cpp calls so, dequantized. Raises `ModelUnavailable`."""
        if tensor not in self._tensors:
            raise self.unsupported(f"it has no tensor {tensor}")
        found = self._tensors[tensor]
        return _dequantized(found.data, found.tensor_type)

    def unsupported(self, reason: str) -> ModelUnavailable:
        """The error that refuses this file for `reason`."""
        return ModelUnavailable(f"the GGUF file {self.path} is not supported: {reason}")

    def _check(self) -> None:
        if self.get("split.count", 1) > 1:
            raise self.unsupported(
                "it is one part of a split file; join them with `llama-gguf-split --merge`"
            )
        for key, feature in REFUSED.items():
            read = key in self._architecture.settings.values()
            if not read and self.get(f"{self.name}.{key}") not in (None, 0, 1.0, False):
                raise self.unsupported(f"it has {feature} ({self.name}.{key})")
        for tensor in self._reader.tensors:
            self._name(tensor.name)
            if tensor.tensor_type.name not in QUANTIZATIONS:
                raise self.unsupported(
                    f"tensor {tensor.name} is quantized as {tensor.tensor_type.name}; "
                    f"read are {', '.join(QUANTIZATIONS)}"
                )

    def _name(self, name: str) -> str | None:
        """The name in transformers of the tensor that llama.cpp calls `name`.

        None for one that becomes a part of the config.
        """
        stem, _, kind = name.rpartition(".")
        if kind in ("weight", "bias"):
            if stem in self._architecture.rope_tensors:
                return None
            if stem in TENSORS:
                return f"{TENSORS[stem]}.{kind}"
            block = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
            if block is not None and block[2] in self._architecture.block:
                return f"model.layers.{block[1]}.{self._architecture.block[block[2]]}.{kind}"
        raise self.unsupported(f"it has a tensor {name}, which is not read for {self.name}")

    def _named(self) -> Iterator[_Tensor]:
        """Every tensor that is read, in the order of the file; of experts, one for each."""
        for tensor in self._reader.tensors:
            name = self._name(tensor.name)
            if name is None:
                continue
            part, kind = tensor.name.split(".")[-2], tensor.tensor_type
            # GGUF lists dimensions from the innermost outwards.
            shape = tuple(int(size) for size in reversed(tensor.shape))
            if EACH not in name:
                yield _Tensor(name, part, kind, shape, tensor.data)
                continue
            if len(shape) != 3:
                raise self.unsupported(f"{tensor.name} is {list(shape)}, and not of experts")
            for at in range(shape[0]):
                own = name.replace(EACH, str(at))
                yield _Tensor(own, part, kind, shape[1:], tensor.data[at])

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor under transformers' name, in the order of the file."""
        return {one.name: one.shape for one in self._named()}

    def tensors(self) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
        """Every tensor under transformers' name, dequantized to float32, in the file's order."""
        for one in self._named():
            yield one.name, self._restored(one.part, _dequantized(one.data, one.kind))

    def types(self) -> dict[str, str]:
        """What each tensor is quantized as, under transformers' name."""
        return {one.name: one.kind.name for one in self._named()}

    def stored(self) -> dict[str, Entry]:
        """How `stored_tensors` has each tensor, in the order of the file: uint8 rows of BLOCKS, and
        matrices in 16 or 32 bits as they are. Vectors may be in float32 instead of float16, and
        everything else is bfloat16."""
        return {
            one.name: Entry(one.stored, tuple(one.data.shape) if one.stored == "U8" else one.shape)
            for one in self._named()
        }

    def stored_tensors(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """Every tensor for a file of these entries, bfloat16 as float32."""
        for one in self._named():
            as_it_is = one.stored in ("U8", "F16")
            values = one.data if as_it_is else _dequantized(one.data, one.kind)
            yield one.name, self._restored(one.part, values)

    def _restored(self, part: str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The values, or rows of blocks, as transformers has them."""
        if part.endswith("norm") and self._architecture.norm_offset:
            offset: npt.NDArray[Any] = values - values.dtype.type(self._architecture.norm_offset)
            return offset
        if self._architecture.interleaved and part in ("attn_q", "attn_k"):
            return unpermute(values, self._heads if part == "attn_q" else self._kv_heads)
        return values

    @property
    def _heads(self) -> int:
        heads: int = self.require_setting("attention.head_count")
        return heads

    @property
    def _kv_heads(self) -> int:
        heads: int = self.setting("attention.head_count_kv") or self._heads
        return heads

    def config(self) -> dict[str, object]:
        """What transformers keeps in `config.json`. Raises `ModelUnavailable`."""
        architecture = self._architecture
        hidden = self.require_setting("embedding_length")
        head_dim = self.setting("attention.key_length") or hidden // self._heads
        if self.setting("attention.value_length", head_dim) != head_dim:
            raise self.unsupported("its values are not as wide as its keys")
        rotary = self.setting("rope.dimension_count", head_dim)
        if rotary != head_dim and not architecture.partial_rotary:
            raise self.unsupported("it rotates only a part of each head")
        layers = self.require_setting("block_count")
        config: dict[str, object] = {
            "architectures": [architecture.class_name],
            "model_type": architecture.model_type,
            "hidden_size": hidden,
            "intermediate_size": self.require_setting("feed_forward_length"),
            "num_hidden_layers": layers,
            "num_attention_heads": self._heads,
            "num_key_value_heads": self._kv_heads,
            "head_dim": head_dim,
            "max_position_embeddings": self.require_setting("context_length"),
            "rms_norm_eps": shortest(self.require_setting("attention.layer_norm_rms_epsilon")),
            "rope_parameters": rope_parameters(self, rotary),
            "tie_word_embeddings": not self.has("output.weight"),
            "vocab_size": self.shapes["model.embed_tokens.weight"][0],
            "dtype": "bfloat16",
            # Those that the file does not name must not be the family's.
            **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
            **self.special_token_ids(),
        }
        config |= architecture.constants
        for name, part in architecture.biases.items():
            config[name] = self.has(f"blk.0.{part}.bias")
        for name, key in architecture.settings.items():
            value = self.setting(key) or None
            config[name] = shortest(value) if isinstance(value, float) else value
        if architecture.scaled_by_width is not None:
            by_width = layers == architecture.scaled_by_width
            config["query_pre_attn_scalar"] = hidden // self._heads if by_width else head_dim
        if architecture.partial_rotary:
            config["partial_rotary_factor"] = rotary / head_dim
        original = self.setting("rope.scaling.original_context_length")
        if original is not None:
            config["original_max_position_embeddings"] = original
        return config

    def special_token_ids(self) -> dict[str, int]:
        """`bos_token_id`, `eos_token_id` and `pad_token_id`, those that the file names."""
        named = {"bos": "bos", "eos": "eos", "pad": "padding"}
        ids = {name: self.get(f"tokenizer.ggml.{key}_token_id") for name, key in named.items()}
        return {f"{name}_token_id": id_ for name, id_ in ids.items() if id_ is not None}


def unpermute(rows: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """Rows [heads * head_dim, ...] from llama.cpp's order within a head to transformers'.

    llama.cpp stores (x0, y0, x1, y1, ...) where transformers stores (x0, x1, ..., y0, y1, ...).
    """
    pairs: npt.NDArray[Any] = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _dequantized(data: npt.NDArray[Any], kind: GGMLQuantizationType) -> npt.NDArray[np.float32]:
    import gguf
    import numpy as np

    values: npt.NDArray[np.float32] = gguf.dequantize(data, kind)
    return values.astype(np.float32, copy=False)
