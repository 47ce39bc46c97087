"""A rank's part of a model in transformers: which of its weights, and where the ranks add up.

Heads are spread by key-value group: whole groups to each rank, some with one more, as long as there
are as many as ranks; with fewer, several ranks have the same key-value head and share its queries.
The columns of an MLP and the vocabulary are spread as evenly as their kernels like. So there is one
sum over the ranks after attention and one after the MLP (a mixture of experts beside shared ones
has two), one for the embedding, and the logits are put together once.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn

from workers.errors import UnsupportedModel
from workers.layers.embedding import Embedding
from workers.layers.experts import (
    PROJECTIONS,
    Experts,
    QuantizedExperts,
    SeparateExperts,
    StackedExperts,
)
from workers.layers.layer import Style
from workers.layers.linear import Linear
from workers.models.description import ConfigSizes
from workers.models.tp_plans import GATHERED, WHOLE, plan_of
from workers.quantization.method import Cut
from workers.ranks import Ranks
from workers.slices import Range, Slices, divide, divide_heads
from workers.vision.families import text_prefix

COLUMNS = (64, 8, 2, 1)
"""Columns that stay together: of these the largest that leaves each rank something to do."""
OF_WORDS = 32
"""Where columns are outputs, as many as may be packed in words stay together."""
KEY_VALUE = frozenset({"k_proj", "v_proj"})
"""Projections with an output for each key-value head; others have one for each query head."""
HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_heads")
KEY_VALUE_HEAD_COUNTS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")
"""Attributes of attention modules and configs."""


class Sharding:
    """The weights of one rank, as `slices` by parameter.

    Layers of ours get their style. Other modules are changed to say their own sizes; `join` lets
    their results be summed, which the fused decoder does by itself.
    """

    def __init__(
        self, model: Any, sizes: ConfigSizes, ranks: Ranks, ours: Mapping[str, nn.Module]
    ) -> None:
        """`ours` are layers, by name, that will be in the place of some of the model's.

        Raises UnsupportedModel.
        """
        self._model = model
        self._ours = WeakValueDictionary(ours)  # who drops one from the model drops its weight
        self._ranks = ranks
        self._kind = model.config.model_type
        self.slices: dict[str, Slices] = {}
        self._summed: list[str] = []
        """Modules whose results are."""
        self._once: list[str] = []
        """Parameters that rank 0 alone adds."""
        self._plan = plan_of(model)
        if ranks.world_size > sizes.n_heads:
            raise UnsupportedModel(
                f"{self._kind} has {sizes.n_heads} heads, which is the most ranks it can be spread "
                f"over: --num-shard is {ranks.world_size}"
            )
        self._sizes = sizes
        self._queries, self._keys = divide_heads(
            sizes.n_heads, sizes.n_kv_heads, ranks.rank, ranks.world_size
        )
        text = text_prefix(model)
        prefix = text
        if not prefix and hasattr(model, model.base_model_prefix):
            prefix = f"{model.base_model_prefix}."
        self._styles = {
            name: style
            for name, _ in [*model.named_modules(), *model.named_parameters()]
            if (
                style := self._plan.get(re.sub(r"(?<=\.)\d+(?=\.)", "*", name.removeprefix(prefix)))
            )
        }
        attentions = [
            name
            for name, one in model.named_modules()
            if _is_attention(one) and name.startswith(text)
        ]
        self._together = math.lcm(
            *(
                math.gcd(layer.method.columns, OF_WORDS if self._of_outputs(name) else 0)
                for name, one in ours.items()
                for layer in one.modules()
                if isinstance(layer, Linear | QuantizedExperts)
                and name.rpartition(".")[0] not in attentions
            )
        )
        """Columns that methods of quantization want to keep together."""
        self._spread_heads = not any(
            style in GATHERED and name.rpartition(".")[0] in attentions
            for name, style in self._styles.items()
        ) and any(
            style in ("colwise", "heads") and name.rpartition(".")[0] in attentions
            for name, style in self._styles.items()
        )
        for name, style in self._styles.items():
            self._spread(name, style, name.rpartition(".")[0] in attentions)
        if self._spread_heads:
            for name in attentions:
                self._localize(name)
        self._spread_vocabulary()

    def _of_outputs(self, name: str) -> bool:
        return self._styles.get(name) in ("colwise", "packed_colwise")

    @property
    def n_heads(self) -> int:
        return self._queries.size if self._spread_heads else self._sizes.n_heads

    @property
    def n_kv_heads(self) -> int:
        return self._keys.size if self._spread_heads else self._sizes.n_kv_heads

    def columns(self, n: int) -> Range:
        """This rank's of n columns of an MLP."""
        return self._divide(n, self._together)[self._ranks.rank]

    @property
    def vocabulary(self) -> Range:
        """The tokens whose embeddings this rank has."""
        return self._divide(self._embedding_rows)[self._ranks.rank]

    @property
    def logit_widths(self) -> list[int]:
        """How many logits each rank computes."""
        return [one.size for one in self._divide(self._head_rows)]

    def join(self, model: Any) -> None:
        """Sum results over the ranks where they are parts. The model is complete by now."""
        for name in self._once if self._ranks.rank else ():
            model.get_parameter(name).data.zero_()
        for name in self._summed:
            model.get_submodule(name).register_forward_hook(self._sum)
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        if not isinstance(embedding, Embedding):
            embedding.register_forward_pre_hook(self._find_own)
            embedding.register_forward_hook(self._sum_embeddings)
        if not isinstance(head, Linear):
            head.register_forward_hook(self._gather)

    # -- weights ---------------------------------------------------------------------------------

    def _spread(self, name: str, style: str, of_attention: bool) -> None:
        if style in WHOLE or style in GATHERED or (of_attention and not self._spread_heads):
            return
        if style == "moe_tp_experts":
            self._sum_results(name)
            return
        parent, _, leaf = name.rpartition(".")
        experts = self._ours.get(parent)
        if isinstance(experts, QuantizedExperts):
            self._spread_stack(parent, experts, leaf, style)
            return
        if style == "once":
            if isinstance(experts, StackedExperts):
                experts.once.add(leaf)
            elif not isinstance(experts, SeparateExperts):  # whose biases are their layers'
                self._once.append(name)
            return
        parameters = dict(self._model.named_parameters(remove_duplicate=False))
        if name in parameters:
            if isinstance(experts, SeparateExperts):
                if leaf in PROJECTIONS:
                    self._spread_experts(parent, experts, leaf)
                return
            dim = _dimension(style, parameters[name].dim())
            self.slices[name] = {dim: self._ranges(name, style, parameters[name].shape[dim])}
            return
        module = self._model.get_submodule(name)
        if not isinstance(module, nn.Linear):
            raise UnsupportedModel(
                f"{self._kind} cannot be spread over ranks: {name} is a "
                f"{type(module).__name__}; serve it with --num-shard 1"
            )
        if style in ("rowwise", "packed_rowwise"):
            ranges = self._ranges(name, style, module.in_features)
            self._cut(name, module, Cut(inputs=ranges))
        else:
            ranges = self._ranges(name, style, module.out_features)
            self._cut(name, module, Cut(outputs=ranges))

    def _cut(self, name: str, module: nn.Linear, cut: Cut) -> None:
        """Have this rank's part of a linear layer; of inputs, results are summed."""
        ours = self._ours.get(name)
        if isinstance(ours, Linear):
            combine = None if cut.inputs is None else self._added
            self._spread_layer(name, ours, Style(cut, combine, self._adds_once(cut)))
            return
        n = sum(one.size for one in cut.inputs or cut.outputs or ())
        if cut.inputs is not None:
            self.slices[f"{name}.weight"] = {1: cut.inputs}
            module.in_features = n
            self._summed.append(name)
            if not self._adds_once(cut):
                module.register_parameter("bias", None)
        elif cut.outputs is not None:
            self.slices[f"{name}.weight"] = {0: cut.outputs}
            module.out_features = n
            if module.bias is not None:
                self.slices[f"{name}.bias"] = {0: cut.outputs}

    def _spread_layer(self, name: str, layer: Linear | Embedding, style: Style) -> None:
        layer.spread(style)
        try:
            slices = layer.method.cut(layer.size, style.cut)
        except UnsupportedModel as error:
            raise UnsupportedModel(f"{name} cannot be spread over ranks: {error}") from error
        self.slices |= {f"{name}.{leaf}": one for leaf, one in slices.items()}

    def _spread_experts(self, name: str, experts: SeparateExperts, leaf: str) -> None:
        """Columns of each expert's MLP. The results of all are summed at once."""
        for at, one in experts.each():
            for own, layer in one.items():
                if (own == experts.names.down) != (leaf == "down_proj"):
                    continue
                of_inputs = own == experts.names.down
                n = layer.size.inputs if of_inputs else layer.size.outputs
                ranges = [self.columns(n)]
                cut = Cut(inputs=ranges) if of_inputs else Cut(outputs=ranges)
                style = Style(cut, adds_once=self._adds_once(cut))
                self._spread_layer(f"{name}.{at}.{own}", layer, style)

    def _spread_stack(self, name: str, experts: QuantizedExperts, leaf: str, style: str) -> None:
        """Columns of all experts' MLPs; what goes with a projection is cut with it."""
        if leaf not in PROJECTIONS:
            return
        size, of_inputs = experts.sizes[leaf], leaf == "down_proj"
        n = size.inputs if of_inputs else size.outputs
        ranges = self._ranges(f"{name}.{leaf}", style, n)
        try:
            slices = experts.cut(leaf, Cut(inputs=ranges) if of_inputs else Cut(outputs=ranges))
        except UnsupportedModel as error:
            raise UnsupportedModel(f"{name} cannot be spread over ranks: {error}") from error
        self.slices |= {f"{name}.{own}": one for own, one in slices.items()}

    def _sum_results(self, name: str) -> None:
        ours = self._ours.get(name)
        if isinstance(ours, Experts):
            ours.style = Style(combine=self._added, adds_once=self._ranks.rank == 0)
        else:
            self._summed.append(name)

    def _adds_once(self, cut: Cut) -> bool:
        return cut.inputs is None or self._ranks.rank == 0

    def _ranges(self, name: str, style: str, n: int) -> list[Range]:
        """Of n inputs or outputs, this rank's."""
        parent, _, leaf = name.rpartition(".")
        if _is_attention(self._model.get_submodule(parent)):
            if style == "heads":
                n_all = self._sizes.n_heads + 2 * self._sizes.n_kv_heads
                dim = self._unit(name, n, n_all)
                keys = self._sizes.n_heads + self._keys.start
                values = keys + self._sizes.n_kv_heads
                starts = [self._queries, Range(keys, keys + self._keys.size)]
                starts.append(Range(values, values + self._keys.size))
                return [Range(one.start * dim, one.end * dim) for one in starts]
            of_keys = leaf in KEY_VALUE
            heads = self._keys if of_keys else self._queries
            dim = self._unit(name, n, self._sizes.n_kv_heads if of_keys else self._sizes.n_heads)
            return [Range(heads.start * dim, heads.end * dim)]
        if style.startswith("packed"):
            half = n // 2
            own = self.columns(half)
            return [own, Range(half + own.start, half + own.end)]
        if style == "interleaved":
            own = self.columns(n // 2)
            return [Range(2 * own.start, 2 * own.end)]
        return [self.columns(n)]

    def _unit(self, name: str, n: int, n_heads: int) -> int:
        if n % n_heads:
            raise UnsupportedModel(
                f"{self._kind} cannot be spread over ranks: {name} has {n} numbers for {n_heads} "
                "heads; serve it with --num-shard 1"
            )
        return n // n_heads

    def _divide(self, n: int, whole: int = 1) -> list[Range]:
        """In multiples of `whole`."""
        world = self._ranks.world_size
        units = sorted({math.lcm(one, whole) for one in COLUMNS}, reverse=True)
        unit = next((one for one in units if n % one == 0 and n // one >= world), 0)
        if not unit:
            groups = f" in groups of {whole}" if whole > 1 else ""
            most = max(1, n // whole if n % whole == 0 else 1)
            raise UnsupportedModel(
                f"{n} columns{groups} cannot be spread over {world} ranks: --num-shard {most} is "
                "the most"
            )
        return divide(n, world, unit)

    def _spread_vocabulary(self) -> None:
        names = {id(module): name for name, module in self._model.named_modules()}
        embedding, head = self._model.get_input_embeddings(), self._model.get_output_embeddings()
        if not isinstance(embedding, nn.Embedding) or not isinstance(head, nn.Linear):
            raise UnsupportedModel(
                f"{self._kind} cannot be spread over ranks: its embedding is a "
                f"{type(embedding).__name__} and its head a {type(head).__name__}"
            )
        self._embedding_rows, self._head_rows = embedding.num_embeddings, head.out_features
        tokens = Cut(outputs=[self.vocabulary])
        name = names[id(embedding)]
        if isinstance(ours := self._ours.get(name), Embedding):
            self._spread_layer(name, ours, Style(tokens, self._added))
        else:
            # It has no meaning without training, and may be another rank's.
            embedding.padding_idx = None
            self.slices[f"{name}.weight"] = {0: [self.vocabulary]}
        own = Cut(outputs=[self._divide(self._head_rows)[self._ranks.rank]])
        name = names[id(head)]
        if isinstance(ours := self._ours.get(name), Linear):
            self._spread_layer(name, ours, Style(own, self._gathered))
        else:
            self._cut(name, head, own)

    def _localize(self, name: str) -> None:
        """Let an attention module know the heads that it has."""
        module = self._model.get_submodule(name)
        config = getattr(module, "config", None)
        if config is not None:
            module.config = config = copy.copy(config)
        for owner in (module, config):
            for names, n in ((HEAD_COUNTS, self.n_heads), (KEY_VALUE_HEAD_COUNTS, self.n_kv_heads)):
                for one in names:
                    if isinstance(getattr(owner, one, None), int):
                        setattr(owner, one, n)
        if hasattr(module, "num_key_value_groups"):
            module.num_key_value_groups = self.n_heads // self.n_kv_heads
        for leaf in ("q_norm", "k_norm"):  # some families have a weight for each head
            norm = getattr(module, leaf, None)
            n, own = (
                (self._sizes.n_heads, self._queries)
                if leaf == "q_norm"
                else (self._sizes.n_kv_heads, self._keys)
            )
            weight = getattr(norm, "weight", None)
            if weight is not None and weight.dim() == 2 and weight.shape[0] == n:
                self.slices[f"{name}.{leaf}.weight"] = {0: [own]}
        for leaf, own in (("q_layernorm", self._queries), ("k_layernorm", self._keys)):
            norm = getattr(module, leaf, None)  # of StableLM, which has a module for each head
            if isinstance(norms := getattr(norm, "norms", None), nn.ModuleList):
                norm.norms = norms[own.start : own.end]  # type: ignore[union-attr]

    # -- results ---------------------------------------------------------------------------------

    def _sum(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return self._added(output)

    def _added(self, result: torch.Tensor) -> torch.Tensor:
        return self._ranks.all_reduce(result.contiguous())

    def _find_own(self, module: nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
        found = inputs[0]
        if found.is_cpu and not 0 <= int(found.min()) <= int(found.max()) < self._embedding_rows:
            raise IndexError(f"token ids are 0 to {self._embedding_rows - 1}")
        ids = found - self.vocabulary.start
        self._strange = (ids < 0) | (ids >= self.vocabulary.size)
        return ids.masked_fill(self._strange, 0)

    def _sum_embeddings(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return self._added(output.masked_fill(self._strange[..., None], 0))

    def _gather(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return self._gathered(output)

    def _gathered(self, logits: torch.Tensor) -> torch.Tensor:
        return self._ranks.gather(logits, self.logit_widths)


def _dimension(style: str, n_dims: int) -> int:
    """Which of a weight's dimensions is spread; there may be one for experts before the others."""
    return max(0, n_dims - 2) if style in ("colwise", "packed_colwise", "heads") else n_dims - 1


def _is_attention(module: nn.Module) -> bool:
    return "Attention" in type(module).__name__
