"""Beam search: the continuation of the largest total log-probability among those that a beam of candidates reaches."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from tunix_lab.generate.cache import Cache, empty_slots, with_copies
from tunix_lab.generate.config import CacheConfig
from tunix_lab.generate.decode import HostArray, next_logits


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Beams:
    """The beams of each prompt, best first.

    Attributes:
      cache: keys and values, rows = prompts · beams.
      last: the token that the model sees next.
      scores: sum of the log-probabilities of its tokens, nats; -inf where there is no candidate.
      lengths: tokens of each.
      is_done: whether it ended with a stop token; it then keeps its score, and its place among the others.
      tokens: ids, the terminator included.
      logps: log-probability of each at temperature 1, nats.
    """

    cache: Cache
    last: Int[Array, "prompts beams"]
    scores: Float[Array, "prompts beams"]
    lengths: Int[Array, "prompts beams"]
    is_done: Bool[Array, "prompts beams"]
    tokens: Int[Array, "prompts beams new"]
    logps: Float[Array, "prompts beams new"]


def beam_search(
    model: nnx.Module,
    prompts: Cache,
    last: Int[HostArray, " prompts"],
    place: Int[HostArray, " prompts"],
    stop_ids: Int[HostArray, " stops"],
    forbidden: Int[HostArray, " forbidden"],
    budget: Int[HostArray, ""],
    *,
    config: CacheConfig,
    dtype: str,
    n_beams: int,
    slots: int,
    max_new: int,
) -> tuple[Int[Array, "prompts new"], Float[Array, "prompts new"], Int[Array, " prompts"]]:
    """Searches on from each prompt.

    The score is Σ log p(token) with no length penalty. It only falls as a beam goes on, so the search ends once every prompt's
    best beam has ended by itself.

    Args:
      model: a decoder.
      prompts: keys and values of the prompts, made by `decode.prefill`.
      last: each prompt's last token.
      place: its position.
      stop_ids: a beam ends with any of these; filled up with -1.
      forbidden: ids that no beam contains, filled up with ids outside the vocabulary.
      budget: tokens at most.
      config: shape of the cache.
      dtype: of the cache.
      n_beams: beams of each prompt.
      slots: positions of the cache.
      max_new: size of the result's second axis.

    Returns:
      Tokens, log-probabilities and length of each prompt's best beam.
    """
    n_prompts = len(last)
    per_prompt = jnp.repeat(jnp.arange(n_prompts), n_beams)
    everyone = jnp.ones(per_prompt.shape, bool)
    shape = (n_prompts, n_beams)
    beams = Beams(
        cache=with_copies(empty_slots(config, len(per_prompt), slots, dtype), prompts, per_prompt, everyone),
        last=jnp.broadcast_to(jnp.asarray(last)[:, None], shape),
        # One beam goes out from the prompt; n equal ones would stay equal.
        scores=jnp.broadcast_to(jnp.where(jnp.arange(n_beams) == 0, 0.0, -jnp.inf), shape),
        lengths=jnp.zeros(shape, jnp.int32),
        is_done=jnp.zeros(shape, bool),
        tokens=jnp.zeros((*shape, max_new), jnp.int32),
        logps=jnp.zeros((*shape, max_new), jnp.float32),
    )
    graph, state = nnx.split(model)

    def step(carry: tuple[Array, Beams]) -> tuple[Array, Beams]:
        t, beams = carry
        at = (jnp.asarray(place)[:, None] + beams.lengths).reshape(-1)
        logits, cache = next_logits(nnx.merge(graph, state), beams.last.reshape(-1), at, beams.cache)
        logps = jax.nn.log_softmax(logits, axis=-1).at[:, forbidden].set(-jnp.inf, mode="drop")
        return t + 1, _advance(dataclasses.replace(beams, cache=cache), logps.reshape(*shape, -1), stop_ids)

    start = (jnp.zeros((), jnp.int32), beams)
    _, beams = jax.lax.while_loop(lambda carry: (carry[0] < budget) & ~carry[1].is_done[:, 0].all(), step, start)
    return beams.tokens[:, 0], beams.logps[:, 0], beams.lengths[:, 0]


def _advance(beams: Beams, logps: Float[Array, "prompts beams vocab"], stop_ids: Int[HostArray, " stops"]) -> Beams:
    """The best of all beams that are done and of all continuations of the others."""
    n_beams = beams.scores.shape[1]
    # No more than n_beams of one beam's continuations can be among the n_beams best of all.
    added, token = jax.lax.top_k(logps, min(n_beams, logps.shape[-1]))
    only_stay = jnp.where(jnp.arange(added.shape[-1]) == 0, 0.0, -jnp.inf)
    added = jnp.where(beams.is_done[..., None], only_stay, added)
    flat = lambda x: x.reshape(x.shape[0], -1)  # noqa: E731
    scores, chosen = jax.lax.top_k(flat(beams.scores[..., None] + added), n_beams)
    parent = chosen // added.shape[-1]
    of_parent = lambda x: jnp.take_along_axis(x, parent.reshape(*parent.shape, *[1] * (x.ndim - 2)), axis=1)  # noqa: E731
    token, logp = (jnp.take_along_axis(flat(x), chosen, axis=1) for x in (token, added))
    goes_on, lengths = ~of_parent(beams.is_done), of_parent(beams.lengths)
    is_here = goes_on[..., None] & (jnp.arange(beams.tokens.shape[-1]) == lengths[..., None])
    rows = (parent + n_beams * jnp.arange(len(parent))[:, None]).reshape(-1)
    return Beams(
        cache=jax.tree.map(lambda x: x[rows], beams.cache),
        last=jnp.where(goes_on, token, of_parent(beams.last)),
        scores=scores,
        lengths=lengths + goes_on,
        is_done=~goes_on | (token[..., None] == stop_ids).any(axis=-1),
        tokens=jnp.where(is_here, token[..., None], of_parent(beams.tokens)),
        logps=jnp.where(is_here, logp[..., None], of_parent(beams.logps)),
    )
