"""GRPO: an answer is as good as it is better than the others to the same prompt, https://arxiv.org/abs/2402.03300."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from tunix_lab.ops.advantages import group_advantages
from tunix_lab.ops.kl import kl_estimate
from tunix_lab.ops.policy_gradient import aggregate, importance_weights, policy_loss
from tunix_lab.ops.weighted import WeightedMean
from tunix_lab.rl.answers import ScoredAnswers
from tunix_lab.rl.config import GRPOConfig as GRPOConfig
from tunix_lab.rl.config import GrpoKnobs, Role
from tunix_lab.rl.experience import Batch
from tunix_lab.rl.forward import completion_logps
from tunix_lab.rl.rewards import RewardFn as RewardFn
from tunix_lab.rl.rl_cluster import RLCluster
from tunix_lab.rl.rl_learner import RLLearner, token_means
from tunix_lab.sft.metrics_logger import Mode
from tunix_lab.sft.train_step import PerRow


class GRPOLearner(RLLearner):
    """Trains without a critic: advantages are those of rewards within a group.

    L = aggregate(policy loss + β · KL estimate), see `ops.policy_gradient` and `ops.kl`; which of them `GrpoKnobs` says.
    """

    config: GrpoKnobs

    def __init__(self, rl_cluster: RLCluster, algo_config: GrpoKnobs, reward_fns: Any = None, **learner_options: Any):
        """Prepares training.

        Args:
          rl_cluster: with a reference if `algo_config.beta` is greater than 0.
          algo_config: see `GrpoKnobs`.
          reward_fns: called as `fn(prompts, completions, **columns)`; their rewards are added up.
          **learner_options: the keyword arguments of `RLLearner`.

        Raises:
          ValueError: there is no reward, no reference though beta asks for one, or answers are not sampled by chance.
        """
        if algo_config.beta and not rl_cluster.inference_worker.has(Role.REFERENCE):
            raise ValueError("beta > 0 needs a reference: RLCluster(…, reference=…), or beta=0")
        if not rl_cluster.cluster_config.rollout_for(Mode.TRAIN).temperature:
            raise ValueError("the answers of a group would all be the same at temperature 0: RolloutConfig.temperature")
        super().__init__(rl_cluster, algo_config, reward_fns, **learner_options)

    @property
    def num_generations(self) -> int:
        return self.config.num_generations

    @property
    def needs_reference(self) -> bool:
        return self.config.beta > 0

    @property
    def needs_old_logps(self) -> bool:
        return super().needs_old_logps and not self.config.use_rollout_logps

    @property
    def needs_sampler_logps(self) -> bool:
        return self.config.sampler_is is not None

    def judge(self, answers: ScoredAnswers, batch: Batch) -> dict[str, np.ndarray]:
        trained = batch["loss_mask"].any(axis=1)
        shape = (-1, self.num_generations)
        advantages = group_advantages(answers.reward.reshape(shape), self.config.advantage_estimator, trained.reshape(shape))
        by_token = np.asarray(advantages).ravel()[:, None] * batch["loss_mask"]
        judged = {"advantages": by_token.astype(np.float32)}
        if self.updates_per_rollout > 1 and self.config.use_rollout_logps:
            judged["old_logps"] = batch["sampler_logps"]
        return judged

    def loss(self, model: nnx.Module, batch: Mapping[str, Any]) -> tuple[WeightedMean, dict[str, WeightedMean | PerRow]]:
        config, mask = self.config, batch["loss_mask"]
        logps = completion_logps(model, batch, self.rl_cluster.temperature)
        policy = policy_loss(
            logps,
            batch.get("old_logps"),
            batch["advantages"],
            mask,
            epsilon_low=config.epsilon,
            epsilon_high=config.epsilon if config.epsilon_high is None else config.epsilon_high,
            epsilon_c=config.epsilon_c,
            ratio_level=config.ratio_level,
            clip=config.policy_loss_fn != "unclipped",
            weights=self._weights(logps, batch),
        )
        losses = policy.losses
        metrics = {"ratio": policy.ratio, "clip_fraction": policy.is_clipped}
        if config.epsilon_c is not None:
            metrics["dual_clip_fraction"] = policy.is_dual_clipped
        if self.needs_reference:
            kl = kl_estimate(logps, batch["ref_logps"], config.kl_loss_mode, config.kl_clamp_value)
            losses = losses + config.beta * kl
            metrics["kl"] = kl
        budget = self.rl_cluster.cluster_config.rollout_for(Mode.TRAIN).max_tokens_to_generate
        loss = aggregate(losses, mask, config.loss_agg_mode, norm=budget, is_row=batch["is_row"])
        return loss, {**token_means(metrics, mask), "logps": PerRow(logps)}

    def _weights(self, logps: Any, batch: Mapping[str, Any]) -> Any:
        """Weights of the tokens that correct for a sampler whose probabilities are not the trainer's."""
        if self.config.sampler_is is None:
            return None
        trainer = batch.get("old_logps", logps)
        return importance_weights(trainer, batch["sampler_logps"], batch["loss_mask"], self.config.sampler_is_threshold)


GrpoLearner = GRPOLearner
GrpoConfig = GRPOConfig
