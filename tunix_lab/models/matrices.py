"""The linear maps of a model as matrices: what a loop that uses each of them in every step wants to have before it starts."""

import math

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from tunix_lab.models.layers import Einsum


class Matrix(nnx.Module):
    """What an `Einsum` computes, from its weight as a matrix `w` [in, out].

    A weight that lies otherwise (one matrix per head, say) is transposed by each einsum with it; in a loop, by each step.
    """

    def __init__(self, einsum: Einsum):
        rows_and_positions, out = einsum.equation[:2], einsum.equation.split("->")[1]
        contracted, kept = einsum.contracted_and_kept
        weight = einsum.w[...]
        sizes = dict(zip(einsum.weight_letters, weight.shape, strict=True))
        self.dtype = einsum.dtype
        self.kept_sizes = tuple(sizes[letter] for letter in kept)
        self.out_axes = tuple((rows_and_positions + kept).index(letter) for letter in out)
        order = [einsum.weight_letters.index(letter) for letter in contracted + kept]
        self.w = nnx.Param(weight.transpose(order).reshape(-1, math.prod(self.kept_sizes)))
        self.b = None if einsum.b is None else nnx.Param(einsum.b[...].reshape(einsum.bias_shape))

    def __call__(self, x: Float[Array, "batch seq *features"]) -> Float[Array, "..."]:
        out = x.reshape(-1, self.w.shape[0]) @ jnp.asarray(self.w[...], self.dtype)
        out = out.reshape(*x.shape[:2], *self.kept_sizes).transpose(self.out_axes)
        return out if self.b is None else out + jnp.asarray(self.b[...], self.dtype)


def with_matrices(model: nnx.Module) -> nnx.Module:
    """The same model with a `Matrix` for every `Einsum`; `model` stays as it is, and is returned if it is quantized or adapted.

    Weights that are such matrices already are shared, the others (those of attention) copied. What qwix has quantized or adapted
    it runs itself, from the einsums that it knows.
    """
    changed = nnx.merge(*nnx.split(model))
    for _, module in list(nnx.iter_modules(changed)):
        for name, child in list(vars(module).items()):
            if isinstance(child, Einsum):
                if not _is_plain(child):
                    return model
                setattr(module, name, Matrix(child))
    return changed


def _is_plain(einsum: Einsum) -> bool:
    return isinstance(einsum.w, nnx.Variable) and set(nnx.state(einsum)) <= {"w", "b"}
