"""From logits to the next token: temperature, top-k, top-p, and one random number per row."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

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
    logits: Float[Array, "batch vocab"],
    params: SamplingParams,
    keys: UInt32[Array, "batch 2"],
    forbidden: Int[Array, " forbidden"] | None = None,
) -> tuple[Int[Array, " batch"], Float[Array, " batch"]]:
    """Draws one token per row.

    Args:
      logits: of the next token.
      params: how to sample.
      keys: one random key per row.
      forbidden: ids that are never drawn, as if their logits were -inf; ids outside the vocabulary forbid nothing.

    Returns:
      The tokens, and their log-probabilities (nats) at the sampling temperature over the whole vocabulary (at temperature 0: at
      temperature 1), before top-k, top-p and what is forbidden, which is what a trainer recomputes.
    """
    logits = logits.astype(jnp.float32)
    allowed = logits if forbidden is None else logits.at[:, forbidden].set(-jnp.inf, mode="drop")
    draw = lambda x: _draw(x / params.temperature, params, keys)  # noqa: E731
    tokens, logps = jax.lax.cond(params.temperature == 0, _greedy, draw, allowed)
    if forbidden is not None:
        scaled = logits / jnp.where(params.temperature == 0, 1.0, params.temperature)
        logps = _at(scaled, tokens) - jax.nn.logsumexp(scaled, axis=-1)
    return tokens, logps


def _greedy(logits: Float[Array, "batch vocab"]) -> tuple[Int[Array, " batch"], Float[Array, " batch"]]:
    """The most probable token, the first of equals; two plain reductions are several times faster than an argmax on a CPU."""
    largest = logits.max(axis=-1)
    tokens = _first(logits == largest[:, None])
    return tokens, -jnp.log(jnp.exp(logits - largest[:, None]).sum(axis=-1))


def _draw(
    logits: Float[Array, "batch vocab"], params: SamplingParams, keys: UInt32[Array, "batch 2"]
) -> tuple[Int[Array, " batch"], Float[Array, " batch"]]:
    """A token by the inverse of the cumulative distribution: in which block it lies, then where in the block."""
    largest = logits.max(axis=-1, keepdims=True)
    weights = jnp.exp(logits - largest)
    total = weights.sum(axis=-1)
    kept = _blocks(jnp.where(weights >= _threshold(weights, params)[:, None], weights, 0.0))
    sums = kept.sum(axis=-1)
    share = jax.vmap(jax.random.uniform)(keys) * sums.sum(axis=-1)
    block, before = _inverse(sums, share)
    inside, _ = _inverse(jnp.take_along_axis(kept, block[:, None, None], axis=1)[:, 0], share - before)
    tokens = block * kept.shape[-1] + inside
    return tokens, _at(logits, tokens) - largest[:, 0] - jnp.log(total)


def _inverse(
    weights: Float[Array, "batch n"], share: Float[Array, " batch"]
) -> tuple[Int[Array, " batch"], Float[Array, " batch"]]:
    """The first index whose cumulative weight exceeds the share, and the weight before it.

    Sums are rounded, so the share may reach the end and a cumulative weight may rise where nothing is added: only indices of
    positive weight count, and the last of them stands for all beyond.
    """
    cumulative = jnp.cumsum(weights, axis=-1)
    last = weights.shape[-1] - 1 - _first((weights > 0)[:, ::-1])
    index = jnp.minimum(_first((weights > 0) & (cumulative > share[:, None])), last)
    return index, _at(cumulative, index) - _at(weights, index)


def _blocks(weights: Float[Array, "batch vocab"]) -> Float[Array, "batch blocks block"]:
    """Blocks of about √vocab entries, the last filled up with zeros."""
    batch, vocab = weights.shape
    size = 1 << (vocab.bit_length() // 2)
    blocks = -(-vocab // size)
    return jnp.pad(weights, ((0, 0), (0, blocks * size - vocab))).reshape(batch, blocks, size)


def _first(is_it: Bool[Array, "batch n"]) -> Int[Array, " batch"]:
    """The first index where it is True; the last index if it is nowhere."""
    n = is_it.shape[-1]
    return jnp.where(is_it, jnp.arange(n, dtype=jnp.int32), n - 1).min(axis=-1)


def _at(values: Float[Array, "batch n"], index: Int[Array, " batch"]) -> Float[Array, " batch"]:
    return jnp.take_along_axis(values, index[:, None], axis=-1)[:, 0]


def _threshold(weights: Float[Array, "batch vocab"], params: SamplingParams) -> Float[Array, " batch"]:
    """The smallest weight that may be drawn: the larger of top-k's and top-p's."""
    none = jnp.zeros(weights.shape[0])
    by_k = jax.lax.cond(params.top_k > 0, lambda: _bisect(weights, params.top_k, by_mass=False), lambda: none)

    def nucleus():
        # As usual, it is taken of what top-k left.
        left = jnp.where(weights >= by_k[:, None], weights, 0.0)
        return _bisect(left, params.top_p * left.sum(axis=-1), by_mass=True)

    return jnp.maximum(by_k, jax.lax.cond(params.top_p < 1, nucleus, lambda: none))


def _bisect(weights, wanted, *, by_mass: bool):
    """The largest threshold t at which the tokens with weight ≥ t still number (or weigh) at least `wanted`; no sort."""

    def enough(threshold):
        above = weights >= threshold[:, None]
        return (jnp.where(above, weights, 0.0) if by_mass else above).sum(axis=-1) >= wanted

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        ok = enough(middle)
        return jnp.where(ok, middle, low), jnp.where(ok, high, middle)

    low, high = jax.lax.fori_loop(0, _BISECTIONS, halve, (jnp.zeros(weights.shape[0]), weights.max(axis=-1)))
    return jnp.where(enough(high), high, low)
