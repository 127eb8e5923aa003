"""Next-token cross-entropy as a sum and a weight, from log-probabilities, or from hidden states with its gradient at once."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tunix_lab.ops.logps import token_logps
from tunix_lab.ops.softcap import soft_cap
from tunix_lab.ops.weighted import WeightedMean

# Logits held at once: on a CPU they stay in its cache, and each slice reads and writes the head's whole gradient once.
_LOGITS_AT_ONCE = 2**22


def cross_entropy(logps: Float[Array, "batch seq"], mask: Bool[Array, "batch seq"]) -> WeightedMean:
    """−Σ log p over the masked tokens and their number: L = −(1/Σm) Σ m·log p, nats per token."""
    return WeightedMean.of(-logps, mask.astype(jnp.float32))


def head_cross_entropy(
    hidden: Float[Array, "batch seq embed"],
    head: Float[Array, "vocab embed"],
    targets: Int[Array, "batch seq"],
    mask: Bool[Array, "batch seq"],
    *,
    softcap: float | None = None,
    logits_at_once: int = _LOGITS_AT_ONCE,
) -> WeightedMean:
    """`cross_entropy` of `token_logps`, with one product of hidden states and head less where a gradient is wanted.

    The gradient of a sum is known up to a factor when its value is. So it is computed with it, a slice of the sequence at a time
    (rows stay whole), from the same logits, which nothing keeps or computes again. A head that is not trained costs no gradient.
    That is for a CPU: on a mesh of accelerators every slice's share of the head's gradient would cross the network, so there the
    gradient is that of `token_logps`.

    Args:
      hidden: the model's final hidden states.
      head: its output head.
      targets: token ids.
      mask: the tokens that count; what stands elsewhere in `hidden` is never read.
      softcap: logits go through softcap · tanh(logits / softcap).
      logits_at_once: of a slice.
    """
    if jax.default_backend() != "cpu":
        return cross_entropy(token_logps(hidden, head, targets, softcap=softcap), mask)
    batch, length = targets.shape
    most = max(1, logits_at_once // (batch * head.shape[0]))
    size = -(-length // -(-length // most))  # slices as equal as can be, so that little is filled up
    hidden = jnp.where(mask[..., None], hidden, 0)
    return WeightedMean(_total(size, softcap, hidden, head, targets, mask), mask.sum().astype(jnp.float32))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _total(size, softcap, hidden, head, targets, mask):
    return -jnp.where(mask, token_logps(hidden, head, targets, softcap=softcap), 0.0).sum()


def _total_fwd(size, softcap, hidden, head, targets, mask):
    trains_head = head.perturbed
    hidden, head, targets, mask = (given.value for given in (hidden, head, targets, mask))

    def add_slice(carry, piece):
        total, d_head = carry
        h, y, m = (array.reshape(-1, *array.shape[2:]) for array in piece)  # one axis of tokens: plain matrix products
        raw = jnp.einsum("nd,vd->nv", h, head, preferred_element_type=jnp.float32)
        logits = soft_cap(raw, softcap)
        logsumexp = jax.nn.logsumexp(logits, axis=-1)
        chosen = jnp.take_along_axis(logits, y[:, None], axis=-1)[:, 0]
        total = total + jnp.where(m, logsumexp - chosen, 0.0).sum()
        is_target = jnp.arange(head.shape[0]) == y[:, None]
        # d −log p[y] / d logits = softmax − onehot(y); subtracted in float32, for where p is near 1 the two nearly cancel.
        d_logits = jnp.where(m[:, None], jnp.exp(logits - logsumexp[:, None]) - is_target, 0.0)
        if softcap is not None:
            d_logits = d_logits * (1.0 - jnp.square(logits / softcap))  # the derivative of c · tanh(z / c)
        d_logits = d_logits.astype(head.dtype)
        d_hidden = jnp.einsum("nv,vd->nd", d_logits, head, preferred_element_type=jnp.float32)
        if trains_head:  # its transpose is added up: a CPU multiplies so twice as fast
            d_head = d_head + jnp.einsum("nd,nv->dv", h, d_logits, preferred_element_type=jnp.float32)
        return (total, d_head), d_hidden.reshape(piece[0].shape)

    batch, length = targets.shape
    slices = [_sliced(array, size) for array in (hidden, targets, mask)]
    d_head = jnp.zeros(head.shape[::-1], jnp.float32) if trains_head else None
    (total, d_head), d_hidden = jax.lax.scan(add_slice, (jnp.zeros((), jnp.float32), d_head), slices)
    d_hidden = d_hidden.swapaxes(0, 1).reshape(batch, -1, hidden.shape[-1])[:, :length]
    return total, (d_hidden.astype(hidden.dtype), None if d_head is None else d_head.T.astype(head.dtype))


def _total_bwd(size, softcap, saved, cotangent):
    d_hidden, d_head = jax.tree.map(lambda gradient: (cotangent * gradient).astype(gradient.dtype), saved)
    return d_hidden, d_head, None, None


_total.defvjp(_total_fwd, _total_bwd, symbolic_zeros=True)


def _sliced(array: Array, size: int) -> Array:
    """[batch, seq, …] -> [slices, batch, size, …], the last slice filled up with zeros."""
    batch, length, *rest = array.shape
    count = -(-length // size)
    padded = jnp.pad(array, ((0, 0), (0, count * size - length), *[(0, 0)] * len(rest)))
    return padded.reshape(batch, count, size, *rest).swapaxes(0, 1)
