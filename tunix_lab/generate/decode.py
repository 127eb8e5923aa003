"""The two programs of generation, as pure functions of arrays: prompts into a cache, and rows on from there, token by token."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt32

from tunix_lab.generate.cache import Cache, empty_slots, n_slots, with_copies, with_ends, without_ends
from tunix_lab.generate.config import CacheConfig
from tunix_lab.generate.sampling import SamplingParams, sample
from tunix_lab.models.matrices import with_matrices
from tunix_lab.ops.masks import causal_mask
from tunix_lab.ops.softcap import soft_cap

# For a matrix times so few vectors, CPUs are twice as fast if it lies transposed; written so, it is transposed before the loop.
_FEW_ROWS = 4
# Made on the host, and traced on the device.
HostArray = Array | np.ndarray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Call:
    """What all rows of one call share; values, so that changing them compiles nothing.

    Attributes:
      sampling: how to sample.
      stop_ids: a row ends with any of these tokens; filled up with -1.
      forbidden: ids that are never drawn, filled up with the vocabulary's size; None is a program without them.
      seed: root of the random numbers.
    """

    sampling: SamplingParams
    stop_ids: Int[HostArray, " stops"]
    forbidden: Int[HostArray, " forbidden"] | None
    seed: UInt32[HostArray, ""]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows that are decoded side by side.

    Attributes:
      cache: keys and values of the tokens before `last`; a row's token at position p lies in slot p.
      last: the token that the model sees next: a prompt's last, then the newest one.
      place: its position.
      sample_ids: each row's identity for its random numbers.
      n_new: tokens generated so far.
      budget: tokens to generate at most.
      is_live: whether the row goes on; False where it has ended or was never used.
      tokens: generated ids, the terminator included.
      logps: log-probability of each at the sampling temperature, nats.
      logits: from which each was drawn; None if nobody asked.
    """

    cache: Cache
    last: Int[Array, " rows"]
    place: Int[Array, " rows"]
    sample_ids: UInt32[Array, " rows"]
    n_new: Int[Array, " rows"]
    budget: Int[Array, " rows"]
    is_live: Bool[Array, " rows"]
    tokens: Int[Array, "rows new"]
    logps: Float[Array, "rows new"]
    logits: Float[Array, "rows new vocab"] | None

    @classmethod
    def empty(cls, config: CacheConfig, dtype: str, rows: int, slots: int, max_new: int, vocab: int | None) -> "Rows":
        """Rows that nobody uses; with room for logits if `vocab` is given."""
        zeros = jnp.zeros((rows,), jnp.int32)
        return cls(
            cache=empty_slots(config, rows, slots, dtype),
            last=zeros,
            place=zeros,
            sample_ids=jnp.zeros((rows,), jnp.uint32),
            n_new=zeros,
            budget=zeros,
            is_live=jnp.zeros((rows,), bool),
            tokens=jnp.zeros((rows, max_new), jnp.int32),
            logps=jnp.zeros((rows, max_new), jnp.float32),
            logits=None if vocab is None else jnp.zeros((rows, max_new, vocab), jnp.float32),
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Arrivals:
    """Rows that begin; every field has one entry per row of `Rows`, of which only those with source ≥ 0 are read.

    Attributes:
      source: the prompt's row in the cache that `prefill` made; -1 leaves the row as it is.
      last: the prompt's last token.
      place: its position.
      sample_ids: identity for the random numbers.
      budget: tokens to generate at most.
    """

    source: Int[HostArray, " rows"]
    last: Int[HostArray, " rows"]
    place: Int[HostArray, " rows"]
    sample_ids: UInt32[HostArray, " rows"]
    budget: Int[HostArray, " rows"]


def prefill(model: nnx.Module, tokens: Int[Array, "prompts width"], *, config: CacheConfig, dtype: str) -> Cache:
    """Keys and values of prompts without their last token, which is the first that `decode` gives to the model.

    So no program but `decode` computes logits, and only for tokens that need them; of the last layer nothing is computed here but
    keys and values.

    Args:
      model: a decoder.
      tokens: right-padded: causality alone keeps padding from being seen, and decoding overwrites its slots.
      config: shape of the cache.
      dtype: of the cache.
    """
    n_prompts, width = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(width), tokens.shape)
    cache = with_ends(empty_slots(config, n_prompts, width, dtype), jnp.zeros((n_prompts,), jnp.int32))
    _, cache = model(tokens, positions, cache, causal_mask(jnp.ones(tokens.shape, bool)), skip_lm_head=True)
    return without_ends(cache)


def admit(rows: Rows, prompts: Cache, new: Arrivals) -> Rows:
    """The rows, some of them begun anew: each with a copy of its prompt's cache."""
    is_new = new.source >= 0
    return dataclasses.replace(
        rows,
        cache=with_copies(rows.cache, prompts, new.source, is_new),
        last=jnp.where(is_new, new.last, rows.last),
        place=jnp.where(is_new, new.place, rows.place),
        sample_ids=jnp.where(is_new, new.sample_ids, rows.sample_ids),
        budget=jnp.where(is_new, new.budget, rows.budget),
        n_new=jnp.where(is_new, 0, rows.n_new),
        is_live=rows.is_live | is_new,
    )


def decode(model: nnx.Module, rows: Rows, call: Call, leave_at: Int[HostArray, ""]) -> tuple[Rows, Int[Array, "rows 3"]]:
    """Goes on until at most `leave_at` rows are live, or one of them has filled the cache.

    A token is drawn with the key (seed, sample id, its number in the row) from logits that no other row has a part in.

    Args:
      model: a decoder.
      rows: to go on with.
      call: what they share.
      leave_at: 0 waits for all.

    Returns:
      The rows; and of each whether it is live, its position, and its number of tokens.
    """
    slots = n_slots(rows.cache)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(call.seed), i))(rows.sample_ids)
    # Measured on CPUs alone, where a transposed weight costs as much as the product with it: the copies take memory.
    graph, state = nnx.split(with_matrices(model) if jax.default_backend() == "cpu" else model)

    def goes_on(rows: Rows) -> Bool[Array, ""]:
        return (rows.is_live.sum() > leave_at) & (jnp.where(rows.is_live, rows.place, 0).max() < slots)

    def step(rows: Rows) -> Rows:
        # A module of the loop's own: one with adapters takes notes while it runs, which flax forbids across loops.
        logits, cache = next_logits(nnx.merge(graph, state), rows.last, rows.place, rows.cache)
        row_keys = jax.vmap(lambda key, n: jax.random.key_data(jax.random.fold_in(key, n)))(keys, rows.n_new)
        token, logp = sample(logits, call.sampling, row_keys, call.forbidden)
        return _with_token(rows, cache, token, logp, logits, call.stop_ids)

    rows = jax.lax.while_loop(goes_on, step, rows)
    return rows, jnp.stack([rows.is_live.astype(jnp.int32), rows.place, rows.n_new], axis=1)


def next_logits(
    model: nnx.Module, last: Int[Array, " rows"], place: Int[Array, " rows"], cache: Cache
) -> tuple[Float[Array, "rows vocab"], Cache]:
    """Shows the model one token per row.

    Args:
      model: a decoder.
      last: the tokens.
      place: their positions, which are their slots in the cache.
      cache: keys and values of what comes before them.

    Returns:
      Logits of the token behind each, in float32; and the cache with them.
    """
    mask = jnp.arange(n_slots(cache)) <= place[:, None, None]
    hidden, cache = model(last[:, None], place[:, None], with_ends(cache, place), mask, skip_lm_head=True)
    logits = _times_head(hidden[:, 0], model.head())
    return soft_cap(logits, model.config.final_logit_softcap), without_ends(cache)


def _times_head(hidden: Float[Array, "rows embed"], head: Float[Array, "vocab embed"]) -> Float[Array, "rows vocab"]:
    if len(hidden) <= _FEW_ROWS:
        return jnp.matmul(hidden, head.T, preferred_element_type=jnp.float32)
    return jnp.einsum("bd,vd->bv", hidden, head, preferred_element_type=jnp.float32)


def _with_token(rows: Rows, cache: Cache, token: Array, logp: Array, logits: Array, stop_ids: Array) -> Rows:
    """Puts a token behind every live row; rows that ended stay as they are, but for slots that nobody reads."""
    is_here = rows.is_live[:, None] & (jnp.arange(rows.tokens.shape[1]) == rows.n_new[:, None])
    n_new = rows.n_new + rows.is_live
    is_last = (token[:, None] == stop_ids).any(axis=-1) | (n_new >= rows.budget)
    return dataclasses.replace(
        rows,
        cache=cache,
        last=jnp.where(rows.is_live, token, rows.last),
        place=rows.place + rows.is_live,
        n_new=n_new,
        is_live=rows.is_live & ~is_last,
        tokens=jnp.where(is_here, token[:, None], rows.tokens),
        logps=jnp.where(is_here, logp[:, None], rows.logps),
        logits=None if rows.logits is None else jnp.where(is_here[..., None], logits[:, None], rows.logits),
    )
