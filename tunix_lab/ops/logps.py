"""Log-probabilities of given tokens from hidden states, without ever holding the logits of a whole batch."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tunix_lab.ops.softcap import soft_cap

# Logits held at once: 2**22 float32 are 16 MiB.
_LOGITS_AT_ONCE = 2**22


def gather_logps(logits: Float[Array, "batch seq vocab"], targets: Int[Array, "batch seq"]) -> Float[Array, "batch seq"]:
    """log softmax(logits)[target] in float32, nats; a gather and a log-sum-exp, no [B, T, V] log-softmax."""
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def token_logps(
    hidden: Float[Array, "batch seq embed"],
    head: Float[Array, "vocab embed"],
    targets: Int[Array, "batch seq"],
    logits_at_once: int = _LOGITS_AT_ONCE,
    softcap: float | None = None,
) -> Float[Array, "batch seq"]:
    """log softmax(hidden · headᵀ)[target] in float32, nats; with `softcap` of the soft-capped logits.

    The head is applied to slices of the sequence axis (rows stay whole, so a batch split over devices stays split), and the
    backward pass recomputes each slice's logits: memory is that of one slice, 4 · logits_at_once bytes, not of [B, T, V].
    """
    batch, length = targets.shape
    slice_length = max(1, logits_at_once // (batch * head.shape[0]))
    if slice_length >= length:
        return _slice_logps(softcap, hidden, head, targets)
    n_slices = -(-length // slice_length)
    pad = n_slices * slice_length - length
    hidden = jnp.pad(hidden, ((0, 0), (0, pad), (0, 0)))
    padded_targets = jnp.pad(targets, ((0, 0), (0, pad)))
    hidden_slices = hidden.reshape(batch, n_slices, slice_length, -1).swapaxes(0, 1)
    target_slices = padded_targets.reshape(batch, n_slices, slice_length).swapaxes(0, 1)
    logps = jax.lax.map(lambda piece: _slice_logps(softcap, piece[0], head, piece[1]), (hidden_slices, target_slices))
    return logps.swapaxes(0, 1).reshape(batch, -1)[:, :length]


def _logits(hidden, head):
    return jnp.einsum("btd,vd->btv", hidden, head, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _slice_logps(softcap, hidden, head, targets):
    return gather_logps(soft_cap(_logits(hidden, head), softcap), targets)


def _slice_logps_fwd(softcap, hidden, head, targets):
    return _slice_logps(softcap, hidden, head, targets), (hidden, head, targets)


def _slice_logps_bwd(softcap, saved, cotangent):
    hidden, head, targets = saved
    # d logp[y] / d logits = onehot(y) − softmax; the logits are cheaper to compute again than to keep.
    logits = soft_cap(_logits(hidden, head), softcap)
    onehot = jax.nn.one_hot(targets, head.shape[0], dtype=jnp.float32)
    d_logits = (onehot - jax.nn.softmax(logits, axis=-1)) * cotangent[..., None]
    if softcap is not None:
        d_logits = d_logits * (1.0 - jnp.square(logits / softcap))  # the derivative of c · tanh(z / c)
    d_hidden = jnp.einsum("btv,vd->btd", d_logits.astype(head.dtype), head)
    d_head = jnp.einsum("btv,btd->vd", d_logits, hidden.astype(jnp.float32))
    return d_hidden.astype(hidden.dtype), d_head.astype(head.dtype), None


_slice_logps.defvjp(_slice_logps_fwd, _slice_logps_bwd)


def sum_logps(logps: Float[Array, "batch seq"], mask: Bool[Array, "batch seq"]) -> Float[Array, " batch"]:
    """Σ over the tokens of the mask, nats; what stands outside it may be NaN."""
    return jnp.where(mask, logps, 0.0).sum(axis=-1)
