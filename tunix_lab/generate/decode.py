"""Generation as one pure function of arrays: prefill the prompts, then decode in a `while_loop` until every row has stopped."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from tunix_lab.generate.cache import init_cache
from tunix_lab.generate.config import CacheConfig
from tunix_lab.generate.sampling import SamplingParams, sample
from tunix_lab.ops.masks import causal_mask, positions_from_mask


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Generated:
    """What was generated; on the device, or fetched to the host.

    Attributes:
      tokens: ids, the terminator included; what follows a row's end has no meaning.
      logps: log-probability of each token at the sampling temperature, nats.
      lengths: tokens of each row, the terminator included.
      stopped: whether the row ended by itself; otherwise the budget cut it.
    """

    tokens: Int[Array | np.ndarray, "batch new"]
    logps: Float[Array | np.ndarray, "batch new"]
    lengths: Int[Array | np.ndarray, " batch"]
    stopped: Bool[Array | np.ndarray, " batch"]


def generate(
    model: nnx.Module,
    prompts: Int[Array, "batch prompt"],
    prompt_mask: Bool[Array, "batch prompt"],
    is_row: Bool[Array, " batch"],
    sample_ids: Int[Array, " batch"],
    seed: Int[Array, ""],
    params: SamplingParams,
    stop_ids: Int[Array, " stops"],
    budget: Int[Array, ""],
    *,
    cache_config: CacheConfig,
    cache_dtype: str,
    max_new: int,
) -> Generated:
    """Continues every prompt.

    The token at place t of row i is drawn with the key (seed, sample_ids[i], t): it does not depend on the row's neighbours, on
    padding or on the size of the batch.

    Args:
      model: a decoder.
      prompts: token ids, left-padded.
      prompt_mask: True where a prompt token is real.
      is_row: False for rows that only fill up the batch.
      sample_ids: identity of each row for its random numbers.
      seed: of the call.
      params: how to sample.
      stop_ids: a row ends with any of these tokens.
      budget: tokens to generate at most, ≤ max_new.
      cache_config: shape of the model's cache.
      cache_dtype: numpy name of its dtype.
      max_new: size of the result's second axis.
    """
    batch, prompt_length = prompts.shape
    slots = prompt_length + max_new
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(sample_ids)
    cache = init_cache(cache_config, batch, slots, cache_dtype)
    logits, cache = model(prompts, positions_from_mask(prompt_mask), cache, causal_mask(prompt_mask))
    n_prompt = prompt_mask.sum(axis=-1, dtype=jnp.int32)
    usable = jnp.pad(prompt_mask, ((0, 0), (0, max_new)), constant_values=True)
    graph, state = nnx.split(model)

    def draw(logits, t, done, out):
        row_keys = jax.vmap(lambda key: jax.random.key_data(jax.random.fold_in(key, t)))(keys)
        token, logp = sample(logits, params, row_keys)
        out = Generated(
            tokens=out.tokens.at[:, t].set(token),
            logps=out.logps.at[:, t].set(logp),
            lengths=out.lengths + ~done,
            stopped=out.stopped | (~done & jnp.isin(token, stop_ids)),
        )
        return token, out

    def body(carry):
        t, token, cache, done, out = carry
        mask = usable & (jnp.arange(slots) < prompt_length + t)[None]
        # A module of the loop's own: one with adapters takes notes while it runs, which flax forbids across loops.
        step = nnx.merge(graph, state)
        logits, cache = step(token[:, None], (n_prompt + t - 1)[:, None], cache, mask[:, None])
        token, out = draw(logits[:, -1], t, done, out)
        return t + 1, token, cache, done | out.stopped, out

    out = Generated(
        tokens=jnp.zeros((batch, max_new), jnp.int32),
        logps=jnp.zeros((batch, max_new), jnp.float32),
        lengths=jnp.zeros((batch,), jnp.int32),
        stopped=jnp.zeros((batch,), bool),
    )
    token, out = draw(logits[:, -1], 0, ~is_row, out)
    start = (jnp.ones((), jnp.int32), token, cache, ~is_row | out.stopped, out)
    *_, out = jax.lax.while_loop(lambda c: (c[0] < budget) & ~c[3].all(), body, start)
    return out
