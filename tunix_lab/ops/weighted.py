"""The one reduction: a sum and its weight, divided once per optimizer update."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WeightedMean:
    """An average that has not been divided yet, so that parts of a batch can be added in any grouping.

    A loss returns one of these. Micro-batches and devices add theirs, `mean` divides once; a loss that divided by itself would
    weigh a short micro-batch as much as a long one.

    Attributes:
      total: Σ weight · value.
      count: Σ weight, for example the number of trained tokens or of pairs.
    """

    total: Float[Array, ""]
    count: Float[Array, ""]

    @classmethod
    def of(
        cls, values: Float[Array, "*shape"], weights: Float[Array, "*shape"] | Bool[Array, "*shape"] | None = None
    ) -> "WeightedMean":
        """Sums `values` by `weights` (all one if None). A value whose weight is 0 may be NaN or infinite: it is never read."""
        values = values.astype(jnp.float32)
        if weights is None:
            return cls(values.sum(), jnp.asarray(values.size, jnp.float32))
        weights = weights.astype(jnp.float32)
        return cls((jnp.where(weights != 0, values, 0.0) * weights).sum(), weights.sum())

    def __add__(self, other: "WeightedMean") -> "WeightedMean":
        return WeightedMean(self.total + other.total, self.count + other.count)

    @property
    def mean(self) -> Float[Array, ""]:
        """total / count; 0 where nothing had weight."""
        return jnp.where(self.count > 0, self.total / jnp.where(self.count > 0, self.count, 1.0), 0.0)
