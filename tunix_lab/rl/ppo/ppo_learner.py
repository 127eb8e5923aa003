"""PPO: a critic tells how good an answer was bound to be, and what came better trains the actor, https://arxiv.org/abs/1707.06347."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from tunix_lab.ops.advantages import gae, whiten
from tunix_lab.ops.kl import kl_estimate
from tunix_lab.ops.policy_gradient import aggregate, policy_loss, value_loss
from tunix_lab.ops.weighted import WeightedMean
from tunix_lab.rl.answers import ScoredAnswers
from tunix_lab.rl.config import PPOConfig as PPOConfig
from tunix_lab.rl.config import PpoKnobs, Role
from tunix_lab.rl.experience import Batch, tokens_of
from tunix_lab.rl.forward import completion_logps, completion_logps_and_entropy, completion_values
from tunix_lab.rl.rl_cluster import RLCluster
from tunix_lab.rl.rl_learner import RLLearner, token_means
from tunix_lab.sft.train_step import PerRow


class PPOLearner(RLLearner):
    """Trains actor and critic together on the same answers.

    The reward of an answer stands at its last token; at every token β · KL(π_old ‖ π_ref) is taken off. Advantages are those of
    generalized advantage estimation.
    """

    config: PpoKnobs

    def __init__(
        self,
        rl_cluster: RLCluster,
        ppo_config: PpoKnobs | None = None,
        reward_fns: Any = None,
        *,
        algo_config: PpoKnobs | None = None,
        **learner_options: Any,
    ):
        """Prepares training.

        Args:
          rl_cluster: with a critic, and a reference if beta is greater than 0.
          ppo_config: see `PpoKnobs`.
          reward_fns: called as `fn(prompts, completions, **columns)`; None where the cluster has a reward model.
          algo_config: another name of `ppo_config`.
          **learner_options: the keyword arguments of `RLLearner`.

        Raises:
          ValueError: something that is needed is missing.
        """
        config = ppo_config if ppo_config is not None else algo_config
        if config is None:
            raise ValueError("PPOLearner needs its configuration: ppo_config=PPOConfig(…)")
        if rl_cluster.critic_trainer is None:
            raise ValueError("PPO needs a critic: RLCluster(…, critic=…); models.value_head makes one of any decoder")
        if config.beta and not rl_cluster.inference_worker.has(Role.REFERENCE):
            raise ValueError("beta > 0 needs a reference: RLCluster(…, reference=…), or beta=0")
        super().__init__(rl_cluster, config, reward_fns, **learner_options)
        rl_cluster.critic_trainer.with_loss_fn(self._critic_loss, has_aux=True)

    @property
    def num_generations(self) -> int:
        return self.config.num_generations

    @property
    def mini_batch_size(self) -> int | None:
        own = self.config.mini_batch_size if isinstance(self.config, PPOConfig) else None
        return super().mini_batch_size if own is None else own

    @property
    def needs_reference(self) -> bool:
        return self.config.beta > 0

    @property
    def needs_old_logps(self) -> bool:
        return super().needs_old_logps or self.needs_reference

    def judge(self, answers: ScoredAnswers, batch: Batch) -> dict[str, np.ndarray]:
        mask = batch["loss_mask"]
        all_values = self.rl_cluster.get_values(**tokens_of(batch), micro_batch_size=self._logps_rows, with_last=True)
        values = all_values[:, :-1]
        rewards = np.zeros(mask.shape, np.float32)
        lengths = batch["completion_mask"].sum(axis=1)
        rewards[np.arange(len(lengths)), lengths - 1] = np.where(np.isfinite(answers.reward), answers.reward, 0.0)
        if self.needs_reference:
            logps = jnp.asarray(batch["old_logps"]), jnp.asarray(batch["ref_logps"])
            kl = np.asarray(kl_estimate(*logps, self.config.kl_method))
            kl = np.where(batch["completion_mask"], kl, 0.0)
            rewards = rewards - self.config.beta * kl
            self.rl_cluster.buffer_metrics({"kl": float(kl[mask].mean()) if mask.any() else 0.0})
        goes_on = np.asarray([reason != "stop" for reason in answers.rollout.finish_reason]) & self.config.bootstrap_truncated
        bootstrap = np.where(goes_on, all_values[np.arange(len(lengths)), lengths], 0.0).astype(np.float32)
        lambdas = {"gamma": self.config.gamma, "gae_lambda": self.config.gae_lambda}
        advantages, returns = gae(rewards, values, batch["completion_mask"], bootstrap=bootstrap, **lambdas)
        if self.config.whiten_advantages:
            advantages = whiten(advantages, mask)
        advantages = np.where(mask, np.asarray(advantages), 0.0).astype(np.float32)
        return {"advantages": advantages, "returns": np.asarray(returns, np.float32), "old_values": values}

    def loss(self, model: nnx.Module, batch: Mapping[str, Any]) -> tuple[WeightedMean, dict[str, WeightedMean | PerRow]]:
        config, mask, temperature = self.config, batch["loss_mask"], self.rl_cluster.temperature
        entropy = None
        if config.entropy_coef:
            logps, entropy = completion_logps_and_entropy(model, batch, temperature)
        else:
            logps = completion_logps(model, batch, temperature)
        policy = policy_loss(
            logps,
            batch.get("old_logps"),
            batch["advantages"],
            mask,
            epsilon_low=config.epsilon if config.epsilon_low is None else config.epsilon_low,
            epsilon_high=config.epsilon if config.epsilon_high is None else config.epsilon_high,
            epsilon_c=config.epsilon_c,
        )
        losses = policy.losses if entropy is None else policy.losses - config.entropy_coef * entropy
        metrics = {"ratio": policy.ratio, "clip_fraction": policy.is_clipped}
        if config.epsilon_c is not None:
            metrics["dual_clip_fraction"] = policy.is_dual_clipped
        return aggregate(losses, mask, "token-mean"), {**token_means(metrics, mask), "logps": PerRow(logps)}

    def _critic_loss(self, model: nnx.Module, batch: Mapping[str, Any]) -> tuple[WeightedMean, dict[str, WeightedMean]]:
        mask, values = batch["loss_mask"], completion_values(model, batch)[:, :-1]
        losses, is_clipped = value_loss(values, batch["old_values"], batch["returns"], self.config.clip_range_value)
        metrics = {"value_mean": values, "return_mean": batch["returns"], "value_clip_fraction": is_clipped}
        return aggregate(losses, mask, "token-mean"), token_means(metrics, mask)


PpoLearner = PPOLearner
PpoConfig = PPOConfig
