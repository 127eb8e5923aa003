"""The critic: any decoder with a scalar head on its final hidden states, in place of the output head over the vocabulary."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from tunix_lab.models.adapters import has_adapters
from tunix_lab.models.config import ModelConfig
from tunix_lab.models.decoder import Decoder


class ValueModel(nnx.Module):
    """A decoder that says of every token how much reward it expects from there on.

    Attributes:
      backbone: the decoder; its output head is not used.
      head: weight [embed, 1] of the scalar head, zero at first, so that a fresh critic expects nothing. A LoRA parameter if the
        backbone carries adapters: then adapters and head are trained, and the rest is not.
    """

    def __init__(self, backbone: Decoder):
        kind = nnx.LoRAParam if has_adapters(backbone) else nnx.Param
        self.backbone = backbone
        self.head = kind(jnp.zeros((backbone.config.embed_dim, 1), backbone.config.param_dtype), axes=("embed", None))

    @property
    def config(self) -> ModelConfig:
        """The backbone's."""
        return self.backbone.config

    def __call__(
        self,
        tokens: Int[Array, "batch seq"],
        positions: Int[Array, "batch seq"],
        cache: None = None,
        attention_mask: Bool[Array, "batch seq key"] | None = None,
    ) -> tuple[Float[Array, "batch seq 1"], None]:
        """The value of the state behind each token.

        Args:
          tokens: token ids.
          positions: position of each token in its own text, from 0.
          cache: None; a critic reads whole texts.
          attention_mask: as for `Decoder`.

        Returns:
          Values in float32, and None in the place of a cache.
        """
        hidden, _ = self.backbone(tokens, positions, cache, attention_mask, skip_lm_head=True)
        head = self.head[...].astype(jnp.float32)
        return jnp.einsum("btd,do->bto", hidden.astype(jnp.float32), head), None


def value_model(backbone: Decoder) -> ValueModel:
    """A fresh critic on a decoder of any family, tied head or not; the backbone stays as it is.

    The arrays are the backbone's own, not copies: a trainer that updates them in place must not share them with another that
    does so too. An output head of its own is left out, since nothing would train it.
    """
    graph, state = nnx.split(backbone)
    copied = nnx.merge(graph, jax.tree.map(lambda array: array, state))
    copied.lm_head = None
    return ValueModel(copied)
