"""Estimates of the KL divergence of a policy from its reference, one per sampled token.

What an estimate is worth depends on where it is put. Let y ~ π, with k a function of log π(y) and log π_ref(y):

| estimator | | E_π[k] | E_π[∇k], the gradient of a loss that adds k |
|---|---|---|---|
| "kl" | k1 | KL(π ‖ π_ref) | 0: in a loss it only adds noise; it belongs into rewards |
| "mse_kl" | k2 | ½ E_π[k1²], near KL(π ‖ π_ref) while the two are close | ∇KL(π ‖ π_ref) |
| "low_var_kl" | k3 | KL(π ‖ π_ref) | ∇KL(π_ref ‖ π), which is near ∇KL(π ‖ π_ref) while the two are close |

Of tokens sampled from another policy μ the same holds for the estimates weighted by π/μ (detached), and not without weights.
In a text these are the gradients by each token's own distribution; what a token does to those behind it only reaches it where the
KL is part of the reward.

http://joschu.net/blog/kl-approx.html has the values, https://arxiv.org/abs/2506.09477 the gradients.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

_LARGEST_LOG_RATIO = 20.0
"""e^20 = 4.9e8: far beyond what training survives, and still a float32 whose square is one too."""


def kl_estimate(
    logps: Float[Array, "rows tokens"],
    ref_logps: Float[Array, "rows tokens"],
    estimator: str,
    clamp: float | None = None,
) -> Float[Array, "rows tokens"]:
    """KL(π ‖ π_ref) as one sampled token tells it, nats; float32.

    k1 = log π − log π_ref,   k2 = ½ k1²,   k3 = e^d − d − 1 with d = −k1

    Args:
      logps: log π of the sampled tokens, nats; gradients flow through it.
      ref_logps: log π_ref of the same tokens, nats.
      estimator: "kl" (k1), "mse_kl" (k2) or "low_var_kl" (k3).
      clamp: estimates are clipped to ±clamp, nats; None leaves them. A clipped estimate has no gradient.

    Raises:
      ValueError: there is no such estimator.
    """
    # The bound keeps k3 finite, and a token that has reached it stops pushing.
    d = jnp.clip(ref_logps.astype(jnp.float32) - logps.astype(jnp.float32), -_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO)
    match estimator:
        case "kl":
            estimate = -d
        case "mse_kl":
            estimate = 0.5 * jnp.square(d)
        case "low_var_kl":
            estimate = jnp.expm1(d) - d  # e^d − 1 by itself would lose what is left near d = 0
        case _:
            raise ValueError(f"KL estimator must be 'kl', 'mse_kl' or 'low_var_kl', got {estimator!r}")
    return estimate if clamp is None else jnp.clip(estimate, -clamp, clamp)
