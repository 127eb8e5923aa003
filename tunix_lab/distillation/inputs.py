"""What both models read of a batch, and which of their outputs count."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from tunix_lab.ops.masks import causal_mask, positions_from_mask, segment_causal_mask, segment_positions


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Inputs:
    """A batch. Position t of every model output belongs to the prediction of token t + 1, and the last one to none.

    Attributes:
      tokens: token ids of the student.
      positions: of the tokens in their texts.
      attention_mask: who sees whom.
      targets: the next tokens.
      is_target: True where the next token is to be learned; only there is student compared with teacher.
    """

    tokens: Int[Array, "batch seq"]
    positions: Int[Array, "batch seq"]
    attention_mask: Bool[Array, "batch seq seq"]
    targets: Int[Array, "batch next"]
    is_target: Bool[Array, "batch next"]

    @classmethod
    def of(
        cls,
        input_tokens: Int[Array, "batch seq"],
        input_mask: Bool[Array, "batch seq"],
        valid: Bool[Array, "batch seq"] | None = None,
        positions: Int[Array, "batch seq"] | None = None,
        attention_mask: Bool[Array, "batch seq seq"] | None = None,
        segment_ids: Int[Array, "batch seq"] | None = None,
    ) -> "Inputs":
        """Fills in what a batch leaves out; the arguments are those of `sft.losses.next_token_loss`."""
        is_target = input_mask[:, 1:].astype(bool)
        if segment_ids is not None:
            positions = segment_positions(segment_ids) if positions is None else positions
            attention_mask = segment_causal_mask(segment_ids) if attention_mask is None else attention_mask
            is_target = is_target & (segment_ids[:, 1:] == segment_ids[:, :-1])
        if valid is None:
            valid = jnp.ones(input_tokens.shape, bool)
        return cls(
            tokens=input_tokens,
            positions=positions_from_mask(valid) if positions is None else positions,
            attention_mask=causal_mask(valid) if attention_mask is None else attention_mask,
            targets=input_tokens[:, 1:],
            is_target=is_target,
        )
