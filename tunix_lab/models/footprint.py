"""How many parameters a model has and what its training state needs in memory: arithmetic on a configuration, without jax."""

import dataclasses

from tunix_lab.models.config import ModelConfig

_BFLOAT16, _FLOAT32 = 2, 4
# A trained parameter has a gradient and AdamW's two moments beside it, all of its own dtype.
_ARRAYS_PER_TRAINED = 4


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Bytes on all devices together, without activations, which depend on batch and sequence length.

    Attributes:
      inference: weights in bfloat16, and the key-value cache of one sequence.
      lora: weights in bfloat16, frozen, and adapters with gradients and moments.
      full: weights in float32 with gradients and moments.
    """

    inference: int
    lora: int
    full: int


def footprint(config: ModelConfig, *, context: int, rank: int) -> Footprint:
    """What one model needs.

    Args:
      config: of the model; its dtypes do not count, those of `Footprint` do.
      context: tokens of the sequence whose cache is counted.
      rank: of the adapters, on every linear map of attention and feed-forward layer (with experts: of attention alone).
    """
    weights = param_count(config) * _BFLOAT16
    cache = config.num_layers * 2 * config.num_kv_heads * config.head_dim * context * _BFLOAT16
    return Footprint(
        inference=weights + cache,
        lora=weights + lora_param_count(config, rank) * _ARRAYS_PER_TRAINED * _BFLOAT16,
        full=param_count(config) * _ARRAYS_PER_TRAINED * _FLOAT32,
    )


def param_count(config: ModelConfig) -> int:
    """Parameters of the whole model."""
    table = config.vocab_size * config.embed_dim
    return table * (1 if config.tie_embeddings else 2) + config.num_layers * _layer(config) + config.embed_dim


def active_param_count(config: ModelConfig) -> int:
    """Parameters that one token goes through: of the experts of a layer only those that it is sent to."""
    if config.experts is None:
        return param_count(config)
    unused = config.experts.count - config.experts.per_token
    return param_count(config) - config.num_layers * unused * 3 * config.embed_dim * config.experts.hidden_dim


def lora_param_count(config: ModelConfig, rank: int) -> int:
    """Parameters of adapters of this rank on every linear map that can carry one: rank · (inputs + outputs) each."""
    embed, hidden = config.embed_dim, config.hidden_dim
    queries, key_values = config.num_heads * config.head_dim, 2 * config.num_kv_heads * config.head_dim
    ends = (embed + queries) + (embed + key_values) + (queries + embed)
    if config.experts is None:
        ends += 3 * (embed + hidden)
    return config.num_layers * rank * ends


def _layer(config: ModelConfig) -> int:
    embed, experts = config.embed_dim, config.experts
    queries, key_values = config.num_heads * config.head_dim, 2 * config.num_kv_heads * config.head_dim
    attention = embed * (2 * queries + key_values) + (queries + key_values if config.qkv_bias else 0)
    norms = (4 if config.post_norms else 2) * embed + (2 * config.head_dim if config.qk_norm else 0)
    if experts is None:
        return attention + norms + 3 * embed * config.hidden_dim
    return attention + norms + embed * experts.count + experts.count * 3 * embed * experts.hidden_dim
