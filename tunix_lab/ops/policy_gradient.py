"""Policy-gradient losses of sampled tokens, their aggregation, and the critic's loss; one value per token until `aggregate`."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tunix_lab.ops.weighted import WeightedMean

_LARGEST_LOG_RATIO = 20.0
"""Bound of log π/π_old of a token; e^20 is finite and far beyond any clip."""
_LARGEST_SEQUENCE_LOG_RATIO = 10.0
"""Upper bound of a sequence's mean log-ratio."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PolicyLoss:
    """The loss of each token, and what the clips did to it; outside the mask 0, a ratio of 1, and False.

    Attributes:
      losses: what is to be made small, not aggregated.
      ratio: π/π_old of the token, or of its sequence; no gradient is meant to be taken of it.
      is_clipped: the clip to 1 ± ε binds, so the token has no gradient.
      is_dual_clipped: the bound ε_c · |A| binds, likewise.
    """

    losses: Float[Array, "rows tokens"]
    ratio: Float[Array, "rows tokens"]
    is_clipped: Bool[Array, "rows tokens"]
    is_dual_clipped: Bool[Array, "rows tokens"]


def policy_loss(
    logps: Float[Array, "rows tokens"],
    old_logps: Float[Array, "rows tokens"] | None,
    advantages: Float[Array, "rows tokens"],
    mask: Bool[Array, "rows tokens"],
    *,
    epsilon_low: float,
    epsilon_high: float,
    epsilon_c: float | None = None,
    ratio_level: str = "token",
    clip: bool = True,
    weights: Float[Array, "rows tokens"] | None = None,
) -> PolicyLoss:
    """The clipped surrogate, eq. 7 of https://arxiv.org/abs/1707.06347, as a loss.

    L_t = max(−A_t ρ_t, −A_t clip(ρ_t, 1 − ε_low, 1 + ε_high)),   ρ_t = π(y_t)/π_old(y_t)

    For a "sequence" the ratio is that of GSPO-token, §4.3 of https://arxiv.org/abs/2507.18071: its value is
    s = (Π_t π(y_t)/π_old(y_t))^(1/|y|) for every token of the answer, its gradient that of the token's own log π times s.

    Args:
      logps: log π of the sampled tokens, nats.
      old_logps: log π_old of the same, nats; None where the policy is the one that sampled: every ratio is 1, and the gradient
        is the plain policy gradient −A ∇log π.
      advantages: A of each token.
      mask: tokens that the policy chose; what stands outside it, NaN too, is never read.
      epsilon_low: lower clip, at 1 − epsilon_low.
      epsilon_high: upper clip, at 1 + epsilon_high.
      epsilon_c: dual clip, https://arxiv.org/abs/1912.09729: where A < 0, L is at most epsilon_c · |A|; > 1. None: no
        such bound.
      ratio_level: "token" or "sequence".
      clip: whether ratios are clipped to 1 ± ε at all; the dual clip does not depend on it.
      weights: multiply the losses, for example `importance_weights`; None is 1.

    Raises:
      ValueError: there is no such ratio level.
    """
    logps, advantages = (jnp.where(mask, x.astype(jnp.float32), 0.0) for x in (logps, advantages))
    old_logps = jax.lax.stop_gradient(logps if old_logps is None else jnp.where(mask, old_logps.astype(jnp.float32), 0.0))
    ratio = jnp.exp(_log_ratio(logps, old_logps, mask, ratio_level))

    # Selections, not max and min: at a tie those would pass on half a gradient.
    losses = -advantages * ratio
    is_clipped = jnp.zeros(mask.shape, bool)
    if clip:
        bounded = -advantages * jnp.clip(ratio, 1.0 - epsilon_low, 1.0 + epsilon_high)
        is_clipped = bounded > losses
        losses = jnp.where(is_clipped, bounded, losses)
    is_dual_clipped = jnp.zeros(mask.shape, bool)
    if epsilon_c is not None:
        is_dual_clipped = (advantages < 0) & (losses > -epsilon_c * advantages)
        losses = jnp.where(is_dual_clipped, -epsilon_c * advantages, losses)
    if weights is not None:
        losses = losses * jnp.where(mask, weights.astype(jnp.float32), 0.0)
    return PolicyLoss(losses, ratio, is_clipped, is_dual_clipped)


def _log_ratio(logps: Array, old_logps: Array, mask: Array, ratio_level: str) -> Array:
    log_ratio = jnp.clip(logps - old_logps, -_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO)
    match ratio_level:
        case "token":
            return log_ratio
        case "sequence":
            lengths = jnp.maximum(mask.sum(axis=-1, keepdims=True), 1)
            mean = jax.lax.stop_gradient(log_ratio.sum(axis=-1, keepdims=True) / lengths)  # outside the mask it is 0
            of_token = logps - jax.lax.stop_gradient(logps)  # 0, with the gradient of log π
            return jnp.where(mask, jnp.minimum(of_token + mean, _LARGEST_SEQUENCE_LOG_RATIO), 0.0)
        case _:
            raise ValueError(f"ratio level must be 'token' or 'sequence', got {ratio_level!r}")


def aggregate(
    losses: Float[Array, "rows tokens"],
    mask: Bool[Array, "rows tokens"],
    mode: str,
    *,
    norm: float | int | None = None,
    is_row: Bool[Array, " rows"] | None = None,
) -> WeightedMean:
    """Losses of tokens as one sum and its weight; micro-batches add up to what the whole batch gives, however rows are split.

    With x_it the loss of token t of row i, n_i the tokens of row i in the mask, N the rows that have any, B all rows:

    | mode | total | count |
    |---|---|---|
    | "token-mean", https://arxiv.org/abs/2503.14476 | Σ_i Σ_t x_it | Σ_i n_i |
    | "sequence-mean-token-mean", https://arxiv.org/abs/2402.03300 | Σ_i (1/n_i) Σ_t x_it | N |
    | "sequence-mean-token-scale", https://arxiv.org/abs/2503.20783 | Σ_i (1/norm) Σ_t x_it | N |
    | "seq-mean-token-sum" | Σ_i Σ_t x_it | N |
    | "sequence-mean-token-sum-norm" | Σ_i Σ_t x_it | B |

    Args:
      losses: of each token; what stands outside the mask may be NaN.
      mask: tokens that count.
      mode: see the table.
      norm: tokens of the budget of an answer, for "sequence-mean-token-scale", which must have it: the width of the arrays would
        make the loss depend on padding. The other modes do not read it.
      is_row: False for rows that only fill up a batch, which are none of the B; None takes all.

    Raises:
      ValueError: there is no such mode, or it lacks its norm.
    """
    n = mask.sum(axis=-1).astype(jnp.float32)
    row_sums = jnp.where(mask, losses.astype(jnp.float32), 0.0).sum(axis=-1)
    rows_with_tokens = (n > 0).sum().astype(jnp.float32)
    match mode:
        case "token-mean":
            return WeightedMean(row_sums.sum(), n.sum())
        case "sequence-mean-token-mean":
            return WeightedMean((row_sums / jnp.maximum(n, 1.0)).sum(), rows_with_tokens)
        case "sequence-mean-token-scale":
            if norm is None:
                raise ValueError("loss aggregation 'sequence-mean-token-scale' needs norm, the tokens of an answer at most")
            return WeightedMean((row_sums / norm).sum(), rows_with_tokens)
        case "seq-mean-token-sum":
            return WeightedMean(row_sums.sum(), rows_with_tokens)
        case "sequence-mean-token-sum-norm":
            n_rows = jnp.asarray(mask.shape[0]) if is_row is None else is_row.sum()
            return WeightedMean(row_sums.sum(), n_rows.astype(jnp.float32))
        case _:
            raise ValueError(f"there is no loss aggregation {mode!r}; see `aggregate` for those that there are")


def importance_weights(
    trainer_logps: Float[Array, "rows tokens"],
    sampler_logps: Float[Array, "rows tokens"],
    mask: Bool[Array, "rows tokens"],
    threshold: float,
) -> Float[Array, "rows tokens"]:
    """Truncated importance sampling, min(π_trainer/π_sampler, threshold), https://fengyao.notion.site/off-policy-rl.

    It corrects for a sampler whose probabilities are not quite those of the weights that it was given.

    Args:
      trainer_logps: log-probabilities that the trainer gives the sampled tokens, nats, with the weights that sampled them.
      sampler_logps: those that the sampler gave them.
      mask: tokens that the policy chose; outside it the weight is 1, and what stands there is never read.
      threshold: upper bound.

    Returns:
      Weights without gradient.
    """
    difference = jnp.where(mask, trainer_logps.astype(jnp.float32) - sampler_logps.astype(jnp.float32), 0.0)
    ratio = jnp.exp(jnp.clip(difference, -_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO))
    return jax.lax.stop_gradient(jnp.where(mask, jnp.minimum(ratio, threshold), 1.0))


def value_loss(
    values: Float[Array, "rows tokens"],
    old_values: Float[Array, "rows tokens"],
    returns: Float[Array, "rows tokens"],
    clip_range: float,
) -> tuple[Float[Array, "rows tokens"], Bool[Array, "rows tokens"]]:
    """The critic's loss with clipped values, as in https://arxiv.org/abs/2005.12729 §3, item 1.

    L_t = ½ max((V − R)², (clip(V, V_old − c, V_old + c) − R)²)

    Args:
      values: V of each token, with gradient; finite also where no mask will count it.
      old_values: V before the updates.
      returns: R, what V should be.
      clip_range: c, how far V may move from V_old before the loss stops pulling.

    Returns:
      The losses, and where the clip binds, so that V has no gradient.
    """
    values, old_values, returns = (x.astype(jnp.float32) for x in (values, old_values, returns))
    free = jnp.square(values - returns)
    bounded = jnp.square(jnp.clip(values, old_values - clip_range, old_values + clip_range) - returns)
    is_clipped = bounded > free
    return 0.5 * jnp.where(is_clipped, bounded, free), is_clipped
