"""From logits to the next token: temperature, top-k, top-p, and one random number per row."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

# Halvings of the interval in which the top-p threshold lies; 2⁻³⁰ of the largest probability is below float32's resolution.
_BISECTIONS = 30


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """How to sample; arrays, so that changing them compiles nothing anew.

    Attributes:
      temperature: [] 0 takes the most probable token.
      top_k: [] only the k most probable tokens; 0 takes all.
      top_p: [] only the smallest set of most probable tokens whose probabilities add up to p; 1 takes all.
    """

    temperature: Float[Array, ""]
    top_k: Int[Array, ""]
    top_p: Float[Array, ""]

    @classmethod
    def of(cls, temperature: float | None, top_k: int | None, top_p: float | None) -> "SamplingParams":
        """None is: greedy, no limit, no limit.

        Raises:
          ValueError: for a value outside its range.
        """
        if (temperature or 0) < 0:
            raise ValueError(f"temperature must be at least 0, got {temperature}")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k must be at least 1, or None for no limit, got {top_k}")
        if top_p is not None and not 0 < top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], or None for no limit, got {top_p}")
        return cls(
            jnp.asarray(temperature or 0.0, jnp.float32),
            jnp.asarray(top_k or 0, jnp.int32),
            jnp.asarray(1.0 if top_p is None else top_p, jnp.float32),
        )


def sample(
    logits: Float[Array, "batch vocab"], params: SamplingParams, keys: UInt32[Array, "batch 2"]
) -> tuple[Int[Array, " batch"], Float[Array, " batch"]]:
    """Draws one token per row.

    Args:
      logits: of the next token.
      params: how to sample.
      keys: one random key per row.

    Returns:
      The tokens, and their log-probabilities (nats) at the sampling temperature over the whole vocabulary (at temperature 0: at
      temperature 1), before top-k and top-p, which is what a trainer recomputes.
    """
    greedy = params.temperature == 0
    logits = logits.astype(jnp.float32) / jnp.where(greedy, 1.0, params.temperature)
    probabilities = jax.nn.softmax(logits, axis=-1)
    kept = jnp.where(probabilities >= _threshold(probabilities, params)[:, None], probabilities, 0.0)
    # Inverse CDF: the first token whose cumulative probability exceeds a uniform share of the kept mass.
    cumulative = jnp.cumsum(kept, axis=-1)
    total = cumulative[:, -1]
    share = jnp.minimum(jax.vmap(jax.random.uniform)(keys) * total, jnp.nextafter(total, 0.0))  # rounding must not reach the end
    drawn = jnp.sum(cumulative <= share[:, None], axis=-1)
    tokens = jnp.where(greedy, jnp.argmax(logits, axis=-1), drawn).astype(jnp.int32)
    logps = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0] - jax.nn.logsumexp(logits, axis=-1)
    return tokens, logps


def _threshold(probabilities: Float[Array, "batch vocab"], params: SamplingParams) -> Float[Array, " batch"]:
    """The smallest probability that may be drawn: the larger of top-k's and top-p's."""
    none = jnp.zeros(probabilities.shape[0])
    by_k = jax.lax.cond(params.top_k > 0, lambda: _bisect(probabilities, params.top_k, by_mass=False), lambda: none)
    # As usual, the nucleus is taken of what top-k left.
    left = jnp.where(probabilities >= by_k[:, None], probabilities, 0.0)
    wanted = params.top_p * left.sum(axis=-1)
    by_p = jax.lax.cond(params.top_p < 1, lambda: _bisect(left, wanted, by_mass=True), lambda: none)
    return jnp.maximum(by_k, by_p)


def _bisect(probabilities, wanted, *, by_mass: bool):
    """The largest threshold t at which the tokens with probability ≥ t still number (or weigh) at least `wanted`; no sort."""

    def enough(threshold):
        above = probabilities >= threshold[:, None]
        return (jnp.where(above, probabilities, 0.0) if by_mass else above).sum(axis=-1) >= wanted

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        ok = enough(middle)
        return jnp.where(ok, middle, low), jnp.where(ok, high, middle)

    low, high = jax.lax.fori_loop(0, _BISECTIONS, halve, (jnp.zeros(probabilities.shape[0]), probabilities.max(axis=-1)))
    return jnp.where(enough(high), high, low)
