"""Preference losses: functions of summed answer log-probabilities, one value per pair."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def dpo_loss(
    chosen: Float[Array, " pair"],
    rejected: Float[Array, " pair"],
    ref_chosen: Float[Array, " pair"],
    ref_rejected: Float[Array, " pair"],
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> Float[Array, " pair"]:
    """DPO, eq. 7 of https://arxiv.org/abs/2305.18290, with label smoothing ε.

    L = −(1−ε)·log σ(βΔ) − ε·log σ(−βΔ),   Δ = log π(y_w|x)/π_ref(y_w|x) − log π(y_l|x)/π_ref(y_l|x)

    Args:
      chosen: log π(y_w|x), summed over the answer's tokens, nats.
      rejected: log π(y_l|x), likewise.
      ref_chosen: log π_ref(y_w|x), likewise.
      ref_rejected: log π_ref(y_l|x), likewise.
      beta: strength of the pull towards the reference.
      label_smoothing: probability ε that a label is flipped.
    """
    delta = (chosen - ref_chosen) - (rejected - ref_rejected)
    return _smoothed_logistic(beta * delta, label_smoothing)


def ipo_loss(
    chosen: Float[Array, " pair"],
    rejected: Float[Array, " pair"],
    ref_chosen: Float[Array, " pair"],
    ref_rejected: Float[Array, " pair"],
    *,
    beta: float,
) -> Float[Array, " pair"]:
    """IPO, eq. 17 of https://arxiv.org/abs/2310.12036: pulls the margin to 1/(2β) instead of letting it grow.

    L = (Δ − 1/(2β))²,   Δ as in DPO

    Args:
      chosen: log π(y_w|x), summed over the answer's tokens, nats.
      rejected: log π(y_l|x), likewise.
      ref_chosen: log π_ref(y_w|x), likewise.
      ref_rejected: log π_ref(y_l|x), likewise.
      beta: strength of the pull towards the reference (the paper's τ).
    """
    delta = (chosen - ref_chosen) - (rejected - ref_rejected)
    return jnp.square(delta - 1.0 / (2.0 * beta))


def orpo_odds_loss(
    chosen: Float[Array, " pair"], rejected: Float[Array, " pair"], *, label_smoothing: float = 0.0
) -> Float[Array, " pair"]:
    """The odds-ratio term of ORPO, eq. 6–7 of https://arxiv.org/abs/2403.07691.

    L_OR = −log σ(log odds(y_w|x) − log odds(y_l|x)),   odds(y) = p / (1 − p),   log p = mean over the answer's tokens

    Args:
      chosen: mean log-probability of the chosen answer's tokens, nats, ≤ 0.
      rejected: mean log-probability of the rejected answer's tokens, nats, ≤ 0.
      label_smoothing: probability that a label is flipped.
    """
    return _smoothed_logistic(log_odds(chosen) - log_odds(rejected), label_smoothing)


def log_odds(logp: Float[Array, " pair"]) -> Float[Array, " pair"]:
    """log(p / (1 − p)) from log p ≤ 0; finite also where a float32 cannot tell p from 1."""
    # At p → 1 the odds are infinite; a float32 cannot tell p from 1 above −1e-7 anyway.
    logp = jnp.minimum(logp, -1e-7)
    return logp - jnp.log(-jnp.expm1(logp))


def _smoothed_logistic(margin: Float[Array, " pair"], label_smoothing: float) -> Float[Array, " pair"]:
    return -(1 - label_smoothing) * jax.nn.log_sigmoid(margin) - label_smoothing * jax.nn.log_sigmoid(-margin)
