"""Advantages: how much better an answer, or a token of it, was than what was to be expected."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

AnyArray = Array | np.ndarray
"""These run on the host's arrays as well as on the device's."""


def group_advantages(
    rewards: Float[AnyArray, "prompts group"], estimator: str, valid: Bool[AnyArray, "prompts group"] | None = None
) -> Float[Array, "prompts group"]:
    """The advantage of each of a prompt's answers over the others.

    "grpo", §4.1.2 of https://arxiv.org/abs/2402.03300:  A_i = (r_i − mean(r)) / (std(r) + 1e-6), the std with n − 1
    "drgrpo", https://arxiv.org/abs/2503.20783:          A_i = r_i − mean(r)
    "rloo", https://arxiv.org/abs/2402.14740:            A_i = r_i − mean of the others' r

    Where all rewards of a group are alike every advantage is exactly 0, whatever a float32 makes of their mean.

    Args:
      rewards: of the answers, those to one prompt side by side.
      estimator: "grpo", "drgrpo" or "rloo".
      valid: answers that count; the others get 0 and enter no mean (their rewards may be NaN). None counts all.

    Raises:
      ValueError: there is no such estimator.
    """
    rewards, valid = jnp.asarray(rewards, jnp.float32), _or_all(valid, rewards.shape)
    rewards = jnp.where(valid, rewards, 0.0)
    n = valid.sum(axis=-1, keepdims=True).astype(jnp.float32)
    above = rewards - rewards.sum(axis=-1, keepdims=True) / jnp.maximum(n, 1.0)
    match estimator:
        case "grpo":
            # Squares of what is above 1e19 are no float32: such rewards are scaled, which changes no bit of any others.
            scale = jnp.maximum(jnp.max(jnp.abs(above), axis=-1, keepdims=True) / 1e18, 1.0)
            squares = jnp.where(valid, jnp.square(above / scale), 0.0)
            variance = squares.sum(axis=-1, keepdims=True) / jnp.maximum(n - 1.0, 1.0)
            advantages = above / scale / (jnp.sqrt(variance) + 1e-6)
        case "drgrpo":
            advantages = above
        case "rloo":  # r_i − (Σr − r_i)/(n − 1) = (r_i − mean) · n/(n − 1)
            advantages = above * n / jnp.maximum(n - 1.0, 1.0)
        case _:
            raise ValueError(f"advantage estimator must be 'grpo', 'drgrpo' or 'rloo', got {estimator!r}")
    return jnp.where(valid & ~zero_std_groups(rewards, valid)[:, None], advantages, 0.0)


def zero_std_groups(
    rewards: Float[AnyArray, "prompts group"], valid: Bool[AnyArray, "prompts group"] | None = None
) -> Bool[Array, " prompts"]:
    """Whether all (valid) rewards of a group are alike, so that it teaches nothing; so are those of fewer than two answers."""
    rewards, valid = jnp.asarray(rewards, jnp.float32), _or_all(valid, rewards.shape)
    largest = jnp.where(valid, rewards, -jnp.inf).max(axis=-1)
    return largest <= jnp.where(valid, rewards, jnp.inf).min(axis=-1)


def gae(
    rewards: Float[AnyArray, "rows tokens"],
    values: Float[AnyArray, "rows tokens"],
    mask: Bool[AnyArray, "rows tokens"],
    *,
    gamma: float,
    gae_lambda: float,
    bootstrap: Float[AnyArray, " rows"] | None = None,
) -> tuple[Float[Array, "rows tokens"], Float[Array, "rows tokens"]]:
    """Generalized advantage estimation, eq. 16 of https://arxiv.org/abs/1506.02438, over the tokens of the mask.

    δ_t = r_t + γ V_t' − V_t,   A_t = δ_t + γλ A_t',   R_t = A_t + V_t

    where t' is the next token of the mask, so that tokens in between (those of a tool's answer, padding) are as if they were not
    there; behind the last one V is `bootstrap` and A is 0.

    Args:
      rewards: of each token.
      values: V of each token, from the state in which it was chosen.
      mask: tokens that the policy chose; holes may be anywhere. What stands outside it is never read.
      gamma: discount γ.
      gae_lambda: λ; 0 trusts the values, 1 the rewards.
      bootstrap: value of the state behind the last token: 0 where an answer ended, an estimate where the budget cut it off.
        None is 0.

    Returns:
      Advantages and returns, both 0 outside the mask.
    """
    mask = jnp.asarray(mask)
    rewards, values = (jnp.where(mask, jnp.asarray(x, jnp.float32), 0.0) for x in (rewards, values))
    last = jnp.zeros(mask.shape[:1], jnp.float32) if bootstrap is None else jnp.asarray(bootstrap, jnp.float32)

    def step(carry, token):
        next_value, next_advantage = carry
        reward, value, is_chosen = token
        advantage = reward + gamma * next_value - value + gamma * gae_lambda * next_advantage
        carry = jnp.where(is_chosen, value, next_value), jnp.where(is_chosen, advantage, next_advantage)
        return carry, jnp.where(is_chosen, advantage, 0.0)

    _, advantages = jax.lax.scan(step, (last, jnp.zeros_like(last)), (rewards.T, values.T, mask.T), reverse=True)
    return advantages.T, jnp.where(mask, advantages.T + values, 0.0)


def whiten(advantages: Float[AnyArray, "rows tokens"], mask: Bool[AnyArray, "rows tokens"]) -> Float[Array, "rows tokens"]:
    """(A − mean) / √(variance + 1e-8) over all tokens of the mask, the variance with n − 1; 0 outside it, where NaN may stand.

    The mean is over what is given: give it the whole batch of an update, not a micro-batch.
    """
    mask = jnp.asarray(mask)
    advantages = jnp.where(mask, jnp.asarray(advantages, jnp.float32), 0.0)
    n = mask.sum().astype(jnp.float32)
    centred = jnp.where(mask, advantages - advantages.sum() / jnp.maximum(n, 1.0), 0.0)
    variance = jnp.square(centred).sum() / jnp.maximum(n - 1.0, 1.0)
    return centred * jax.lax.rsqrt(variance + 1e-8)


def _or_all(valid: Bool[AnyArray, "*shape"] | None, shape: tuple[int, ...]) -> Bool[Array, "*shape"]:
    return jnp.ones(shape, bool) if valid is None else jnp.asarray(valid)
