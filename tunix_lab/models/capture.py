"""What a forward pass computes on its way and can hand out: hidden states between the layers, and attention maps."""

import dataclasses
from collections.abc import Collection

import jax
from jaxtyping import Array, Bool, Float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttentionMap:
    """Whom each token of a layer looks at.

    Attributes:
      weights: what the softmax gives, float32; a row adds up to 1.
      visible: True where the query may see the key, the layer's window included; where a row has none, its weights mean nothing.
    """

    weights: Float[Array, "batch heads query key"]
    visible: Bool[Array, "batch query key"]


@dataclasses.dataclass
class Capture:
    """Given to one call of a decoder, which fills it; inside a compiled function it belongs to that function.

    Attributes:
      hidden_layers: numbers of the layers, from 0, whose output is to be kept.
      attention_layers: numbers of the layers whose attention map is to be kept; it is computed for that, which needs
        [batch, heads, seq, seq] numbers a layer.
      hidden: layer -> its output, [batch, seq, embed], before the final norm.
      attention: layer -> its map.
    """

    hidden_layers: Collection[int] = ()
    attention_layers: Collection[int] = ()
    hidden: dict[int, Float[Array, "batch seq embed"]] = dataclasses.field(default_factory=dict)
    attention: dict[int, AttentionMap] = dataclasses.field(default_factory=dict)

    def keep(self, layer: int, hidden: Float[Array, "batch seq embed"], attention_map: AttentionMap | None) -> None:
        """Called by the decoder after each layer."""
        if layer in self.hidden_layers:
            self.hidden[layer] = hidden
        if attention_map is not None:
            self.attention[layer] = attention_map
