"""What the layers of a model in transformers need of a paged cache, asked of the model itself."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import nn

from workers.attention.layer import AttentionSpec
from workers.attention.tracing import tracing
from workers.errors import UnsupportedModel
from workers.forward import Inserted
from workers.models.attention_patches import inputs
from workers.vision.families import FIRST_POSITIONS, takes_images, text_prefix

ACROSS_TOKENS = (nn.Conv1d, nn.LSTM, nn.GRU, nn.RNN)
"""Modules that mix positions, whose past would have to be kept beside keys and values."""


class PackedForward:
    """A model's forward pass over packed tokens."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._more = inputs(model)
        self._of_images = takes_images(model.config)
        self._first = FIRST_POSITIONS.get(model.config.model_type, 0)
        # Else what is asked for might be ignored among other arguments.
        self._selects = "logits_to_keep" in inspect.signature(model.forward).parameters

    def __call__(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        wanted: torch.Tensor,
        inserted: Inserted | None = None,
    ) -> torch.Tensor:
        """Logits [len(wanted), vocabulary] of int64 [T] ids at int64 [T] positions, or [axes, T];
        what is `inserted` only a model that takes images has a place for."""
        more: dict[str, Any] = self._more | ({"logits_to_keep": wanted} if self._selects else {})
        if self._of_images:
            # With embeddings its own code looks for no placeholders among the tokens.
            more["inputs_embeds"] = self._embedded(input_ids, inserted)[None]
        else:
            more["input_ids"] = input_ids[None]
        positions = position_ids + self._first if self._first else position_ids
        with self._deeper(inserted, len(input_ids)):
            output = self._model(position_ids=positions.unsqueeze(-2), use_cache=False, **more)
        logits: torch.Tensor = output.logits[0]
        return logits if self._selects else logits[wanted]

    def _embedded(self, input_ids: torch.Tensor, inserted: Inserted | None) -> torch.Tensor:
        found: torch.Tensor = self._model.get_input_embeddings()(input_ids)
        if inserted is None:
            return found
        rows = inserted.rows[:, : found.shape[1]]
        return found.index_copy(0, inserted.at, rows.to(found.dtype))

    @contextmanager
    def _deeper(self, inserted: Inserted | None, n_tokens: int) -> Iterator[None]:
        """Let the first layers add what rows have for them."""
        hidden = self._model.config.get_text_config().hidden_size
        if inserted is None or inserted.rows.shape[1] == hidden:
            yield
            return
        # The code around the decoder finds placeholders by their tokens, of which it gets none.
        more = {
            "visual_pos_masks": torch.zeros(
                1, n_tokens, dtype=torch.bool, device=inserted.at.device
            ).index_fill_(1, inserted.at, True),
            "deepstack_visual_embeds": inserted.rows[:, hidden:].split(hidden, dim=1),
        }
        hook = self._model.get_decoder().register_forward_pre_hook(
            lambda _, args, given: (args, given | more), with_kwargs=True
        )
        try:
            yield
        finally:
            hook.remove()

    def with_hidden(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        wanted: torch.Tensor,
        inserted: Inserted | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits and what the language-model head made them of, [len(wanted), hidden].

        Raises RuntimeError for a model that does not call its head.
        """
        taken: list[torch.Tensor] = []
        head = self._model.get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda _, inputs: taken.extend(inputs[:1]))
        try:
            logits = self(input_ids, position_ids, wanted, inserted)
        finally:
            hook.remove()
        if len(taken) != 1:
            raise RuntimeError(
                f"{self._model.config.model_type} calls its language-model head {len(taken)} "
                "times a pass, so that its hidden states are not known; serve it with a method of "
                "--speculation that does not need them: suffix or ngram"
            )
        hidden = taken[0][0]
        return logits, hidden if self._selects else hidden[wanted]


def attending_to_text(config: Any) -> list[int]:
    """The numbers of the layers that keep keys and values of the text: all but those that attend to
    images in their place."""
    text = config.get_text_config()
    others = set(getattr(text, "cross_attention_layers", None) or ())
    return [number for number in range(text.num_hidden_layers) if number not in others]


def layers_of(model: Any) -> list[AttentionSpec]:
    """How each layer attends, by number. Runs the model once, over two tokens.

    Raises UnsupportedModel for a model that paged attention over packed tokens would compute
    wrongly.
    """
    kind = model.config.model_type
    text = text_prefix(model)
    for name, module in model.named_modules():
        if isinstance(module, ACROSS_TOKENS) and name.startswith(text):
            raise UnsupportedModel(
                f"{kind} keeps a state other than keys and values ({name} is a "
                f"{type(module).__name__}), which is not served yet; use a model of attention only"
            )
    device = next(model.parameters()).device
    two = torch.arange(2, device=device)
    try:
        with tracing(model) as tracer, torch.inference_mode():
            PackedForward(model)(two, two, two)
    except Exception as error:  # of whatever kind: it is the model's own code that fails
        raise UnsupportedModel(
            f"{kind} does not run with paged attention in transformers "
            f"{transformers.__version__}: {error}"
        ) from error
    layers = [tracer.layers[at] for at in sorted(tracer.layers)]
    n_layers = len(attending_to_text(model.config))
    if sorted(tracer.layers) != list(range(len(layers))) or len(layers) < n_layers:
        raise UnsupportedModel(
            f"{kind} has {n_layers} layers, and attends with AttentionInterface in "
            f"{len(layers)} of them; the others are not served yet"
        )
    return layers
