"""The small layers of the decoder: einsum, RMS norm, token embedding, gated feed-forward."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from tunix_lab.models.config import Activation, ModelConfig


def normal_param(rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str | None, ...], stddev: float, dtype: str) -> nnx.Param:
    """A parameter drawn from N(0, stddev²); `axes` names its logical axes for `models.sharding`."""
    key = rngs.params()
    if isinstance(key, jax.core.Tracer):  # part of a larger program, which may split the array over devices
        return nnx.Param(_draw(key, shape, stddev, dtype), axes=axes)
    # The same numbers, from few programs that compile quickly: what has as many elements shares one.
    return nnx.Param(_draw(key, (math.prod(shape),), stddev, dtype).reshape(shape), axes=axes)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _draw(key: Array, shape: tuple[int, ...], stddev: float, dtype: str) -> Array:
    return (stddev * jax.random.normal(key, shape)).astype(dtype)


class Einsum(nnx.Module):
    """A linear map written as an einsum of its input and its weight `w`, plus a bias `b` if it has one."""

    def __init__(
        self,
        equation: str,
        shape: tuple[int, ...],
        axes: tuple[str | None, ...],
        fan_in: int,
        config: ModelConfig,
        rngs: nnx.Rngs,
        *,
        bias: str | None = None,
    ):
        """Makes the map.

        Args:
          equation: "input,weight->output".
          shape: of the weight.
          axes: logical axes of the weight.
          fan_in: numbers that each output sums up; the weight is drawn with variance 1/fan_in.
          config: gives the dtypes.
          rngs: draws the weight.
          bias: letters of the weight's axes that a bias has, in the output's order; None is no bias.
        """
        self.equation = equation
        self.axes = axes
        self.dtype = config.dtype
        self.w = normal_param(rngs, shape, axes, fan_in**-0.5, config.param_dtype)
        self.b, self.bias_shape = (None, ()) if bias is None else _make_bias(equation, shape, axes, bias, config)

    @property
    def weight_letters(self) -> str:
        """The axes of the weight in the equation."""
        return self.equation.split(",")[1].split("->")[0]

    @property
    def contracted_and_kept(self) -> tuple[str, str]:
        """The weight's axes that are summed over, and those that the output has."""
        out = self.equation.split("->")[1]
        letters = self.weight_letters
        return "".join(x for x in letters if x not in out), "".join(x for x in letters if x in out)

    def __call__(self, x: Float[Array, "batch seq *features"]) -> Float[Array, "..."]:
        # Rows and positions as one axis: with two, XLA on a CPU transposes what the weight's gradient is made of, at a high cost.
        rows, positions, *_ = self.equation
        at = self.equation.split("->")[1].index(rows)
        equation = self.equation.replace(rows + positions, positions)
        out = jnp.einsum(equation, x.reshape(-1, *x.shape[2:]), jnp.asarray(self.w[...], self.dtype))
        out = out.reshape(*out.shape[:at], *x.shape[:2], *out.shape[at + 1 :])
        return out if self.b is None else out + jnp.asarray(self.b[...], self.dtype).reshape(self.bias_shape)


def _make_bias(
    equation: str, shape: tuple[int, ...], axes: tuple[str | None, ...], bias: str, config: ModelConfig
) -> tuple[nnx.Param, tuple[int, ...]]:
    """A bias of zeros, and the shape in which it is added: "ckh" of "bsd,ckdh->cbskh" is added as [c, 1, 1, k, h]."""
    weight, out = equation.split(",")[1].split("->")
    sizes, names = dict(zip(weight, shape, strict=True)), dict(zip(weight, axes, strict=True))
    zeros = jnp.zeros([sizes[letter] for letter in bias], config.param_dtype)
    added = tuple(sizes[letter] if letter in bias else 1 for letter in out)
    return nnx.Param(zeros, axes=tuple(names[letter] for letter in bias)), added


class RMSNorm(nnx.Module):
    """x / rms(x) · scale over the last axis (· (1 + scale) in families whose scale is stored so), in float32."""

    def __init__(self, size: int, config: ModelConfig):
        self.eps = config.rms_norm_eps
        self.adds_one = config.norm_adds_one
        identity = jnp.zeros if self.adds_one else jnp.ones
        self.scale = nnx.Param(identity((size,), config.param_dtype), axes=(None,))

    def __call__(self, x: Float[Array, "... size"]) -> Float[Array, "... size"]:
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        scale = self.scale[...].astype(jnp.float32)
        return (normed * (1.0 + scale if self.adds_one else scale)).astype(x.dtype)


class Embedder(nnx.Module):
    """The embedding table; where the two are tied it is the output head too."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.dtype = config.dtype
        self.is_scaled = config.scale_embeddings
        shape = (config.vocab_size, config.embed_dim)
        self.input_embedding = normal_param(rngs, shape, ("vocab", "embed"), config.embed_dim**-0.5, config.param_dtype)

    def encode(self, tokens: Int[Array, "batch seq"]) -> Float[Array, "batch seq embed"]:
        """Rows of the table, times √embed if the family scales them."""
        x = jnp.asarray(self.input_embedding[...], self.dtype)[tokens]
        return x * jnp.asarray(x.shape[-1] ** 0.5, x.dtype) if self.is_scaled else x

    def head(self) -> Float[Array, "vocab embed"]:
        """The table as output head."""
        return jnp.asarray(self.input_embedding[...], self.dtype)


class Head(nnx.Module):
    """An output head of its own, for families that do not tie it to the embedding table."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.dtype = config.dtype
        shape = (config.vocab_size, config.embed_dim)
        self.w = normal_param(rngs, shape, ("vocab", "embed"), config.embed_dim**-0.5, config.param_dtype)

    def head(self) -> Float[Array, "vocab embed"]:
        """The head's matrix."""
        return jnp.asarray(self.w[...], self.dtype)


class FeedForward(nnx.Module):
    """down(activation(gate(x)) · up(x)), https://arxiv.org/abs/2002.05202."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        embed, hidden = config.embed_dim, config.hidden_dim
        self.activation = config.activation
        self.gate_proj = Einsum("btd,df->btf", (embed, hidden), ("embed", "hidden"), embed, config, rngs)
        self.up_proj = Einsum("btd,df->btf", (embed, hidden), ("embed", "hidden"), embed, config, rngs)
        self.down_proj = Einsum("btf,fd->btd", (hidden, embed), ("hidden", "embed"), hidden, config, rngs)

    def __call__(self, x: Float[Array, "batch seq embed"]) -> Float[Array, "batch seq embed"]:
        return self.down_proj(gated(self.activation, self.gate_proj(x), self.up_proj(x)))


# The widest arrays of a layer: a backward pass keeps gate and up, and makes again what takes no matrix product.
@functools.partial(jax.checkpoint, static_argnums=0)
def gated(activation: Activation, gate: Float[Array, "*rows hidden"], up: Float[Array, "*rows hidden"]):
    """activation(gate) · up."""
    return activation_fn(activation)(gate) * up


def activation_fn(name: Activation) -> Callable[[Array], Array]:
    """The function of a name; GELU in its tanh form, as every family here uses it."""
    match name:
        case "gelu":
            return functools.partial(jax.nn.gelu, approximate=True)
        case "silu":
            return jax.nn.silu
