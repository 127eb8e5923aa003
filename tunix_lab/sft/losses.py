"""The default loss of supervised training, for any model that follows the decoder's calling convention."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from tunix_lab.models.decoder import Decoder
from tunix_lab.ops.cross_entropy import cross_entropy, head_cross_entropy
from tunix_lab.ops.logps import gather_logps, token_logps
from tunix_lab.ops.masks import causal_mask, positions_from_mask, segment_causal_mask, segment_positions
from tunix_lab.ops.weighted import WeightedMean


def next_token_loss(
    model: nnx.Module,
    input_tokens: Int[Array, "batch seq"],
    input_mask: Bool[Array, "batch seq"],
    valid: Bool[Array, "batch seq"] | None = None,
    positions: Int[Array, "batch seq"] | None = None,
    attention_mask: Bool[Array, "batch seq seq"] | None = None,
    segment_ids: Int[Array, "batch seq"] | None = None,
) -> WeightedMean:
    """Cross-entropy of every token that `input_mask` marks, given those before it; nats per token.

    Args:
      model: called as `model(input_tokens, positions, None, attention_mask)`, gives logits and a cache.
      input_tokens: token ids.
      input_mask: True where a token is a target; the first token never is.
      valid: True where a token is real; None takes all as real (right enough for right padding under a causal mask).
      positions: positions of the tokens; None counts the real ones.
      attention_mask: who sees whom; None is causal over the real tokens, within its segment if there are segments.
      segment_ids: several texts packed into a row: 1, 2, … for the tokens of each, 0 for padding. None is one text a row. They
        reach attention, positions and loss alike: no text sees another, and no text's first token is predicted from another.
    """
    targets = input_mask[:, 1:].astype(bool)
    if segment_ids is not None:
        valid = segment_ids > 0
        positions = segment_positions(segment_ids) if positions is None else positions
        attention_mask = segment_causal_mask(segment_ids) if attention_mask is None else attention_mask
        targets = targets & (segment_ids[:, 1:] == segment_ids[:, :-1])
    if valid is None:
        valid = jnp.ones(input_tokens.shape, bool)
    if positions is None:
        positions = positions_from_mask(valid)
    if attention_mask is None:
        attention_mask = causal_mask(valid)
    if isinstance(model, Decoder):
        hidden, _ = model(input_tokens, positions, None, attention_mask, skip_lm_head=True)
        softcap = model.config.final_logit_softcap
        return head_cross_entropy(hidden[:, :-1], model.head(), input_tokens[:, 1:], targets, softcap=softcap)
    return cross_entropy(next_token_logps(model, input_tokens, positions, attention_mask), targets)


def next_token_logps(
    model: nnx.Module,
    tokens: Int[Array, "batch seq"],
    positions: Int[Array, "batch seq"],
    attention_mask: Bool[Array, "batch seq seq"],
    start: int = 0,
    temperature: float = 1.0,
) -> Float[Array, "batch targets"]:
    """log p(tokens[t] | tokens[<t]) for t > start at a temperature, nats, float32; [batch, seq − 1 − start].

    The shared decoder gives hidden states, and its head runs only over the positions asked for and never holds all logits; any
    other model gives its logits.
    """
    targets = tokens[:, start + 1 :]
    if isinstance(model, Decoder):
        hidden, _ = model(tokens, positions, None, attention_mask, skip_lm_head=True)
        softcap = model.config.final_logit_softcap
        return token_logps(hidden[:, start:-1], model.head(), targets, softcap=softcap, temperature=temperature)
    logits, _ = model(tokens, positions, None, attention_mask)
    return gather_logps(logits[:, start:-1].astype(jnp.float32) / temperature, targets)
