"""Batches and metrics between host and device."""

import dataclasses
from typing import Any

import jax
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingInput:
    """A supervised batch.

    Attributes:
      input_tokens: [batch, seq] token ids.
      input_mask: [batch, seq], True where a token is a training target.
    """

    input_tokens: Any
    input_mask: Any


def as_kwargs(batch: Any) -> dict[str, Any]:
    """A batch as keyword arguments: a dict as it is, a dataclass by its fields."""
    if dataclasses.is_dataclass(batch):
        return {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return dict(batch)


def stack(batches: list[Any]) -> Any:
    """Pytrees of equal shapes as one, with a new first axis.

    Raises:
      ValueError: their shapes differ.
    """
    shapes = [jax.tree.map(np.shape, batch) for batch in batches]
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError(
            f"the micro-batches of one update differ in shape ({shapes[0]} and others): pad them alike, or drop the remainder"
        )
    return jax.tree.map(lambda *arrays: np.stack([np.asarray(a) for a in arrays]), *batches)


def to_host(metrics: dict[str, jax.Array]) -> dict[str, float]:
    """Scalars on the host, fetched in one transfer; waits until they are computed."""
    return {name: float(value) for name, value in jax.device_get(metrics).items()}
