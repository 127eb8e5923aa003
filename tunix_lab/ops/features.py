"""Distillation inside the models: how far hidden states and attention maps of a student are from a teacher's, token by token."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def average_pool(x: Float[Array, "*shape"], size: int, axis: int) -> Float[Array, "*pooled"]:
    """Averages over windows along `axis` so that `size` values are left.

    With n values now, windows start every ⌊n / size⌋ values and are n − (size − 1)·⌊n / size⌋ wide: all values are used, and
    where `size` divides n the windows do not overlap.

    Raises:
      ValueError: there are fewer values than `size`.
    """
    n = x.shape[axis]
    if n < size:
        raise ValueError(f"cannot average {n} values down to {size}")
    stride = n // size
    width = n - (size - 1) * stride
    windows = stride * jnp.arange(size)[:, None] + jnp.arange(width)[None]
    x = jnp.moveaxis(x, axis, -1)
    return jnp.moveaxis(x[..., windows].mean(axis=-1), -1, axis)


def cosine_distance(student: Float[Array, "*token width"], teacher: Float[Array, "*token width"]) -> Float[Array, "*token"]:
    """1 − s·t / (|s|·|t|): 0 for the same direction, 1 for orthogonal ones, 2 for opposite ones; 1 where one of them is 0."""
    product = jnp.sum(student * teacher, axis=-1)
    square = jnp.sum(jnp.square(student), axis=-1) * jnp.sum(jnp.square(teacher), axis=-1)
    return 1.0 - product / jnp.sqrt(jnp.maximum(square, 1e-24))  # the root of 0 has no derivative


def mean_squared_error(student: Float[Array, "*token width"], teacher: Float[Array, "*token width"]) -> Float[Array, "*token"]:
    """(1/d)·Σ (s − t)² over the d numbers of a token; with a learned map of s: https://arxiv.org/abs/1412.6550."""
    return jnp.mean(jnp.square(student - teacher), axis=-1)


def attention_kl(
    student: Float[Array, "*map query key"], teacher: Float[Array, "*map query key"], pairs: Bool[Array, "*map query key"]
) -> Float[Array, "*map query"]:
    """KL(A_T ‖ A_S) of each query's attention over the keys of its pairs, nats; https://arxiv.org/abs/2002.10957."""
    teacher = _renormalised(teacher, pairs)
    is_real = pairs & (teacher > 0)
    log_student = jnp.log(jnp.maximum(jnp.where(is_real, student, 1.0), _TINY))
    log_teacher = jnp.log(jnp.where(is_real, teacher, 1.0))
    return jnp.sum(teacher * (log_teacher - log_student), axis=-1)


def attention_mse(
    student: Float[Array, "*map query key"], teacher: Float[Array, "*map query key"], pairs: Bool[Array, "*map query key"]
) -> Float[Array, "*map query"]:
    """(1/n)·Σ (A_S − A_T)² over the n pairs of each query; as https://arxiv.org/abs/1909.10351, but of weights, not of scores."""
    difference = jnp.where(pairs, student - _renormalised(teacher, pairs), 0.0)
    return jnp.sum(jnp.square(difference), axis=-1) / jnp.maximum(pairs.sum(axis=-1), 1)


# The least attention that the student is taken to pay: a weight that has underflowed to 0 is not infinitely wrong.
_TINY = 1e-30


def _renormalised(teacher: Array, pairs: Array) -> Array:
    """The teacher's weights over the keys that the student may see, adding up to 1 again; 0 where it sees none of them."""
    kept = jnp.where(pairs, teacher, 0.0)
    total = kept.sum(axis=-1, keepdims=True)
    return kept / jnp.where(total > 0, total, 1.0)
