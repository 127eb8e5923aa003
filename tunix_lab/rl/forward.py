"""Forward passes over sampled answers: log-probabilities, values and scores, of any number of rows, a few at a time."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from tunix_lab.models.decoder import Decoder
from tunix_lab.models.sharding import place_batch, row_parts
from tunix_lab.ops.logps import gather_logps, token_logps, token_logps_and_entropy
from tunix_lab.rl.experience import Batch, rows_of
from tunix_lab.rl.packing import Packing, one_a_row, packed
from tunix_lab.sft.train_state import snapshot

_READ = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")


def _packing(batch: Mapping[str, Any]) -> Packing:
    return batch["packing"] if "packing" in batch else one_a_row(batch)


def _outputs(model: nnx.Module, packing: Packing, **options: Any) -> Array:
    outputs, _ = model(packing.ids, packing.positions, None, packing.attention_mask, **options)
    return outputs


def _read_hidden(model: Decoder, packing: Packing) -> Float[Array, "parts reads embed"]:
    """The final hidden states where an answer's token is predicted: the head sees no others."""
    return packing.read(_outputs(model, packing, skip_lm_head=True))


def completion_logps(model: nnx.Module, batch: Mapping[str, Any], temperature: float) -> Float[Array, "answers tokens"]:
    """log p of each token of the answers given what is before it, at a temperature, nats; 0 where there is none."""
    packing = _packing(batch)
    if isinstance(model, Decoder):
        how = {"softcap": model.config.final_logit_softcap, "temperature": temperature}
        logps = token_logps(_read_hidden(model, packing), model.head(), packing.targets, **how)
    else:
        logits = packing.read(_outputs(model, packing))
        logps = gather_logps(logits.astype(jnp.float32) / temperature, packing.targets)
    return packing.by_answer(logps, batch["completion_mask"])


def completion_logps_and_entropy(
    model: Decoder, batch: Mapping[str, Any], temperature: float
) -> tuple[Float[Array, "answers tokens"], Float[Array, "answers tokens"]]:
    """`completion_logps`, and the entropy of each next-token distribution, nats."""
    packing = _packing(batch)
    how = {"softcap": model.config.final_logit_softcap, "temperature": temperature}
    both = token_logps_and_entropy(_read_hidden(model, packing), model.head(), packing.targets, **how)
    logps, entropy = (packing.by_answer(values, batch["completion_mask"]) for values in both)
    return logps, entropy


def completion_values(model: nnx.Module, batch: Mapping[str, Any]) -> Float[Array, "answers tokens+1"]:
    """The value before each token of the answers, read at the place that predicts it, and behind the last; then 0."""
    packing = _packing(batch)
    return packing.around_answers(_outputs(model, packing)[..., 0], batch["completion_mask"])


def final_scores(model: nnx.Module, batch: Mapping[str, Any]) -> Float[Array, " answers"]:
    """A reward model's score of each answer: what it gives at the last token."""
    scores = completion_values(model, batch)
    return jnp.take_along_axis(scores, batch["completion_mask"].sum(axis=1, keepdims=True), axis=1)[:, 0]


class Forward:
    """A function of a model and a batch, compiled once per shape, over any number of rows."""

    def __init__(self, model: nnx.Module, function: Callable[[nnx.Module, Mapping[str, Array]], Array], mesh: Mesh | None):
        """Prepares the passes.

        Args:
          model: whose graph is run; its arrays come with each call.
          function: gives an array with the rows first.
          mesh: where its arrays lie; None is one device.
        """
        graph, _ = nnx.split(model)
        self._mesh = mesh
        self._call = jax.jit(lambda state, batch: function(nnx.merge(graph, snapshot(state)), batch))

    def __call__(self, state: Any, batch: Batch, rows_at_once: int | None) -> np.ndarray:
        """The function's result for every answer, on the host.

        Args:
          state: the model's arrays.
          batch: host arrays, see `rl.experience`.
          rows_at_once: answers of one pass; None is all. All passes have one shape.
        """
        n = len(batch["prompt_ids"])
        parts = row_parts(self._mesh)
        size = -(-(rows_at_once or n) // parts) * parts
        read = {name: batch[name] for name in _READ}
        pieces = [
            rows_of(read, np.minimum(places, n - 1)) | {"is_row": places < n}
            for places in np.arange(-(-n // size) * size).reshape(-1, size)
        ]
        place = jax.device_put if self._mesh is None else partial(place_batch, mesh=self._mesh, leading=0)
        passes = [self._call(state, place(piece)) for piece in packed(pieces, parts)]
        return np.concatenate(jax.device_get(passes))[:n]
