"""Log-probabilities of given tokens, and entropies, from hidden states, without ever holding the logits of a whole batch."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tunix_lab.ops.softcap import soft_cap

# float32 numbers held at once. A CPU is fastest when they stay in its cache; an accelerator wants large matrix products.
_LOGITS_AT_ONCE = {"cpu": 2**22}
_LOGITS_AT_ONCE_ON_ACCELERATORS = 2**27


def gather_logps(logits: Float[Array, "batch seq vocab"], targets: Int[Array, "batch seq"]) -> Float[Array, "batch seq"]:
    """log softmax(logits)[target] in float32, nats; a gather and a log-sum-exp, no [B, T, V] log-softmax."""
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def token_logps(
    hidden: Float[Array, "batch seq embed"],
    head: Float[Array, "vocab embed"],
    targets: Int[Array, "batch seq"],
    logits_at_once: int | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> Float[Array, "batch seq"]:
    """log softmax(logits / temperature)[target] in float32, nats; logits = hidden · headᵀ, soft-capped with `softcap`.

    The logits of all tokens are computed for one part of the vocabulary at a time, and their log-sum-exp is carried on from part
    to part (as in https://arxiv.org/abs/2411.09009); the backward pass computes each part again and writes its part of the head's
    gradient. So memory is that of one part and its gradient, 4 · logits_at_once bytes, not of [B, T, V]. Parts take every n-th
    row of the head: a batch or a vocabulary that is split over devices stays split.

    Args:
      hidden: the model's final hidden states.
      head: its output head.
      targets: token ids.
      logits_at_once: float32 numbers that may be held for logits and their gradient; None is what suits the backend.
      softcap: logits go through softcap · tanh(logits / softcap).
      temperature: divides the logits behind the soft cap, as a sampler does; > 0.
    """
    return _token_logps(_n_parts(targets, head, logits_at_once), softcap, temperature, hidden, head, targets)


def token_logps_and_entropy(
    hidden: Float[Array, "batch seq embed"],
    head: Float[Array, "vocab embed"],
    targets: Int[Array, "batch seq"],
    logits_at_once: int | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> tuple[Float[Array, "batch seq"], Float[Array, "batch seq"]]:
    """`token_logps`, and the entropy of the whole distribution at each place, H = −Σ_j p_j log p_j; both in nats.

    Both have gradients, dH/dz_j = −p_j (log p_j + H), and neither ever holds [B, T, V]. The arguments are those of `token_logps`.
    """
    return _with_entropy(_n_parts(targets, head, logits_at_once), softcap, temperature, hidden, head, targets)


def _n_parts(targets: Array, head: Array, logits_at_once: int | None) -> int:
    if logits_at_once is None:
        logits_at_once = _LOGITS_AT_ONCE.get(jax.default_backend(), _LOGITS_AT_ONCE_ON_ACCELERATORS)
    wanted = -(-3 * targets.size * head.shape[0] // logits_at_once)  # logits, their gradient, and that transposed
    return _smallest_divisor(head.shape[0], wanted)


def _smallest_divisor(number: int, least: int) -> int:
    """The smallest divisor of `number` that is at least `least`, so that the parts are equal and nothing is padded."""
    return next(n for n in range(min(max(least, 1), number), number + 1) if number % n == 0)


def _part(head: Array, n_parts: int, i: Array) -> Array:
    """Rows i, i + n, i + 2n, … of the head, [vocab / n, embed]."""
    rows = head.reshape(-1, n_parts, head.shape[-1])
    return jax.lax.dynamic_index_in_dim(rows, i, axis=1, keepdims=False)


def _is_target(targets: Array, n_parts: int, i: Array, size: int) -> Array:
    """[batch, seq, size], True where a row of part `i` is the token's target."""
    place = jnp.where(targets % n_parts == i, targets // n_parts, -1)
    return jnp.arange(size) == place[..., None]


def _logits(hidden: Array, part: Array, softcap: float | None, temperature: float) -> Array:
    logits = soft_cap(jnp.einsum("btd,vd->btv", hidden, part, preferred_element_type=jnp.float32), softcap)
    return logits if temperature == 1.0 else logits / temperature


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _token_logps(n_parts, softcap, temperature, hidden, head, targets):
    return _token_logps_fwd(n_parts, softcap, temperature, hidden, head, targets)[0]


def _token_logps_fwd(n_parts, softcap, temperature, hidden, head, targets):
    def add_part(i, carry):
        largest, total, chosen = carry
        part = _part(head, n_parts, i)
        logits = _logits(hidden, part, softcap, temperature)
        new_largest = jnp.maximum(largest, logits.max(axis=-1))
        total = total * jnp.exp(largest - new_largest) + jnp.exp(logits - new_largest[..., None]).sum(axis=-1)
        chosen = chosen + jnp.where(_is_target(targets, n_parts, i, part.shape[0]), logits, 0.0).sum(axis=-1)
        return new_largest, total, chosen

    zeros = jnp.zeros(targets.shape, jnp.float32)
    largest, total, chosen = jax.lax.fori_loop(0, n_parts, add_part, (zeros - jnp.inf, zeros, zeros))
    logsumexp = largest + jnp.log(total)
    return chosen - logsumexp, (hidden, head, targets, logsumexp)


def _token_logps_bwd(n_parts, softcap, temperature, saved, cotangent):
    hidden, head, targets, logsumexp = saved

    def by_logits(logits, is_target):
        # d logp[y] / d logits = onehot(y) − softmax; subtracted in float32, for where p is near 1 the two nearly cancel.
        return (is_target.astype(jnp.float32) - jnp.exp(logits - logsumexp[..., None])) * cotangent[..., None]

    return *_add_up_gradients(n_parts, softcap, temperature, hidden, head, targets, by_logits), None


def _add_up_gradients(n_parts, softcap, temperature, hidden, head, targets, by_logits):
    """Gradients by hidden states and head; `by_logits(logits, is_target)` is the gradient by the logits of a part."""

    def add_part(i, carry):
        d_hidden, d_head = carry
        part = _part(head, n_parts, i)
        logits = _logits(hidden, part, softcap, temperature)
        d_logits = by_logits(logits, _is_target(targets, n_parts, i, part.shape[0]))
        if temperature != 1.0:
            d_logits = d_logits / temperature
        if softcap is not None:
            capped = logits if temperature == 1.0 else logits * temperature
            d_logits = d_logits * (1.0 - jnp.square(capped / softcap))  # the derivative of c · tanh(z / c)
        d_logits = d_logits.astype(head.dtype)
        d_hidden = d_hidden + jnp.einsum("btv,vd->btd", d_logits, part, preferred_element_type=jnp.float32)
        d_part = jnp.einsum("btv,btd->vd", d_logits, hidden.astype(head.dtype), preferred_element_type=jnp.float32)
        d_head = jax.lax.dynamic_update_index_in_dim(d_head, d_part.astype(head.dtype), i, axis=1)
        return d_hidden, d_head

    zeros = jnp.zeros(hidden.shape, jnp.float32), jnp.zeros((head.shape[0] // n_parts, n_parts, head.shape[1]), head.dtype)
    d_hidden, d_head = jax.lax.fori_loop(0, n_parts, add_part, zeros)
    return d_hidden.astype(hidden.dtype), d_head.reshape(head.shape)


_token_logps.defvjp(_token_logps_fwd, _token_logps_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _with_entropy(n_parts, softcap, temperature, hidden, head, targets):
    return _with_entropy_fwd(n_parts, softcap, temperature, hidden, head, targets)[0]


def _with_entropy_fwd(n_parts, softcap, temperature, hidden, head, targets):
    def add_part(i, carry):
        largest, total, weighted, chosen = carry
        part = _part(head, n_parts, i)
        logits = _logits(hidden, part, softcap, temperature)
        new_largest = jnp.maximum(largest, logits.max(axis=-1))
        sunk, above = largest - new_largest, logits - new_largest[..., None]
        scale, weights = jnp.exp(sunk), jnp.exp(above)
        weighted = scale * (weighted + sunk * total) + (weights * above).sum(axis=-1)
        total = scale * total + weights.sum(axis=-1)
        chosen = chosen + jnp.where(_is_target(targets, n_parts, i, part.shape[0]), logits, 0.0).sum(axis=-1)
        return new_largest, total, weighted, chosen

    zeros = jnp.zeros(targets.shape, jnp.float32)
    # Not −∞, for `sunk` is multiplied by a total of 0 in the first part.
    largest, total, weighted, chosen = jax.lax.fori_loop(0, n_parts, add_part, (zeros - 1e30, zeros, zeros, zeros))
    # With m the largest logit: H = log Σ e^z − Σ p z = log Σ e^(z−m) − Σ p (z−m), in which no large numbers cancel.
    entropy = jnp.log(total) - weighted / total
    logsumexp = largest + jnp.log(total)
    return (chosen - logsumexp, entropy), (hidden, head, targets, logsumexp, entropy)


def _with_entropy_bwd(n_parts, softcap, temperature, saved, cotangents):
    hidden, head, targets, logsumexp, entropy = saved
    by_logp, by_entropy = (x[..., None] for x in cotangents)

    def by_logits(logits, is_target):
        logp = logits - logsumexp[..., None]
        p = jnp.exp(logp)
        return (is_target.astype(jnp.float32) - p) * by_logp - p * (logp + entropy[..., None]) * by_entropy

    return *_add_up_gradients(n_parts, softcap, temperature, hidden, head, targets, by_logits), None


_with_entropy.defvjp(_with_entropy_fwd, _with_entropy_bwd)


def sum_logps(logps: Float[Array, "batch seq"], mask: Bool[Array, "batch seq"]) -> Float[Array, " batch"]:
    """Σ over the tokens of the mask, nats; what stands outside it may be NaN."""
    return jnp.where(mask, logps, 0.0).sum(axis=-1)
