"""Forward passes over sampled answers: log-probabilities, values and scores, of any number of rows, a few at a time."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from tunix_lab.models.decoder import Decoder
from tunix_lab.models.sharding import BATCH_AXIS, place_batch
from tunix_lab.ops.logps import token_logps_and_entropy
from tunix_lab.ops.masks import causal_mask, positions_from_mask
from tunix_lab.rl.experience import Batch, rows_of
from tunix_lab.sft.losses import next_token_logps
from tunix_lab.sft.train_state import snapshot

_READ = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")


def _whole(batch: Mapping[str, Array]) -> tuple[Array, Array, Array, int]:
    """Tokens, positions and attention mask of prompt + answer, and the place of the prompt's last token."""
    tokens = jax.numpy.concatenate([batch["prompt_ids"], batch["completion_ids"]], axis=1)
    valid = jax.numpy.concatenate([batch["prompt_mask"], batch["completion_mask"]], axis=1)
    return tokens, positions_from_mask(valid), causal_mask(valid), batch["prompt_ids"].shape[1] - 1


def completion_logps(model: nnx.Module, batch: Mapping[str, Array], temperature: float) -> Float[Array, "rows tokens"]:
    """log p of each token of the answers given what is before it, at a temperature, nats; the head sees the answers only."""
    tokens, positions, mask, start = _whole(batch)
    return next_token_logps(model, tokens, positions, mask, start=start, temperature=temperature)


def completion_logps_and_entropy(
    model: Decoder, batch: Mapping[str, Array], temperature: float
) -> tuple[Float[Array, "rows tokens"], Float[Array, "rows tokens"]]:
    """`completion_logps`, and the entropy of each next-token distribution, nats."""
    tokens, positions, mask, start = _whole(batch)
    hidden, _ = model(tokens, positions, None, mask, skip_lm_head=True)
    softcap = model.config.final_logit_softcap
    targets = batch["completion_ids"]
    return token_logps_and_entropy(hidden[:, start:-1], model.head(), targets, softcap=softcap, temperature=temperature)


def completion_values(model: nnx.Module, batch: Mapping[str, Array]) -> Float[Array, "rows tokens+1"]:
    """The value before each token of the answers, read at the place that predicts it, and behind the last."""
    tokens, positions, mask, start = _whole(batch)
    values, _ = model(tokens, positions, None, mask)
    return values[:, start:, 0]


def final_scores(model: nnx.Module, batch: Mapping[str, Array]) -> Float[Array, " rows"]:
    """A reward model's score of each answer: what it gives at the last token."""
    tokens, positions, mask, start = _whole(batch)
    scores, _ = model(tokens, positions, None, mask)
    last = start + batch["completion_mask"].sum(axis=1)
    return jax.numpy.take_along_axis(scores[..., 0], last[:, None], axis=1)[:, 0]


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
        """The function's result for every row, on the host.

        Args:
          state: the model's arrays.
          batch: host arrays, see `rl.experience`.
          rows_at_once: rows of one pass; None is all. The last pass is filled up, so all have one shape.
        """
        batch = {name: batch[name] for name in _READ}
        n = len(batch["prompt_ids"])
        parts = 1 if self._mesh is None else self._mesh.shape.get(BATCH_AXIS, 1)
        size = -(-(rows_at_once or n) // parts) * parts
        passes = []
        for start in range(0, n, size):
            rows = rows_of(batch, np.minimum(np.arange(start, start + size), n - 1))
            placed = jax.device_put(rows) if self._mesh is None else place_batch(rows, self._mesh, leading=0)
            passes.append(self._call(state, placed))
        return np.concatenate(jax.device_get(passes))[:n]
