"""From a spec to the objects of reinforcement learning: cluster, rewards, learner, and the trainer that runs them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optax
from jax.sharding import Mesh

from tunix_lab.data.tokenizer import Tokenizer
from tunix_lab.models.adapters import adapter_off, has_adapters
from tunix_lab.models.decoder import Decoder
from tunix_lab.models.value_head import ValueModel
from tunix_lab.rl.config import ClusterConfig, RLTrainingConfig, Role, RolloutConfig
from tunix_lab.rl.grpo.dapo_learner import DAPOLearner
from tunix_lab.rl.grpo.drgrpo_learner import DrGRPOLearner
from tunix_lab.rl.grpo.grpo_learner import GRPOLearner
from tunix_lab.rl.grpo.gspo_learner import GSPOLearner
from tunix_lab.rl.grpo.rloo_learner import RLOOLearner
from tunix_lab.rl.ppo.ppo_learner import PPOLearner
from tunix_lab.rl.reward_pool import RewardPool
from tunix_lab.rl.rewards import RewardProblem
from tunix_lab.rl.rl_cluster import RLCluster
from tunix_lab.rl.rl_learner import RLLearner
from tunix_lab.rl.trainer import RLTrainer
from tunix_lab.rl.trajectories import Trajectories
from tunix_lab.sft.metrics_logger import Mode
from tunix_lab.spec import ExperimentSpec
from tunix_lab.spec.algorithm import Dapo, DrGrpo, Grpo, Gspo, Ppo, Reinforcement, Rloo


@dataclasses.dataclass(frozen=True)
class Telling:
    """Who is told of rollouts.

    Attributes:
      trajectories: gets the record of each.
      masked_reward: gets each reward that a function failed to give, where the spec says to go on.
    """

    trajectories: Callable[[Trajectories], None]
    masked_reward: Callable[[RewardProblem], None]


def build_rl_trainer(
    spec: ExperimentSpec,
    model: Decoder,
    base: Decoder,
    critic: ValueModel | None,
    tokenizer: Tokenizer,
    mesh: Mesh,
    home: Path,
    *,
    optimizers: tuple[optax.GradientTransformation, optax.GradientTransformation | None],
    options: dict[str, Any],
    services: dict[str, Any],
    telling: Telling,
) -> RLTrainer:
    """The trainer of an actor, which samples what it is trained on.

    Args:
      spec: the experiment.
      model: the actor.
      base: the model before training; the frozen reference, where the algorithm has one.
      critic: of PPO.
      tokenizer: of the prompts.
      mesh: where everything lies.
      home: the project folder, whose modules rewards may be in.
      optimizers: of actor and critic.
      options: of the training configuration, as for every algorithm.
      services: keyword arguments of `PeftTrainer`.
      telling: who is told of rollouts.
    """
    algorithm, training = spec.algorithm, spec.training
    actor_optimizer, critic_optimizer = optimizers
    options = {name: value for name, value in options.items() if name != "gradient_accumulation_steps"}
    config = RLTrainingConfig(
        actor_optimizer=actor_optimizer,
        critic_optimizer=critic_optimizer,
        mini_batch_size=training.batch_size,
        train_micro_batch_size=training.rows_per_forward,
        compute_logps_micro_batch_size=training.rows_per_forward,
        **options,
    )
    cluster = RLCluster(
        actor=model,
        critic=critic,
        reference=_reference(algorithm, model, base),
        tokenizer=tokenizer,
        cluster_config=ClusterConfig(
            role_to_mesh={Role.ACTOR: mesh}, training_config=config, rollout_config=_rollout_configs(spec)
        ),
        **services,
    )
    rewards = algorithm.rewards
    pool = RewardPool(
        [function.function for function in rewards.functions],
        home=home,
        workers=rewards.workers,
        timeout_s=rewards.timeout_s,
        memory_mb=rewards.memory_mb,
        names=[function.label for function in rewards.functions],
        weights=[function.weight for function in rewards.functions],
        on_error=rewards.on_error,
        report=telling.masked_reward,
    )
    return _learner(algorithm)(cluster, algorithm, pool, on_trajectories=telling.trajectories).trainer


def _reference(algorithm: Reinforcement, model: Decoder, base: Decoder) -> Decoder | None:
    """The policy before training: without its adapters where it has some; None where the algorithm needs none."""
    if not algorithm.beta:
        return None
    return adapter_off(model) if has_adapters(model) else base


def _rollout_configs(spec: ExperimentSpec) -> dict[str, RolloutConfig]:
    rollout = spec.algorithm.rollout
    shared = {
        "max_tokens_to_generate": rollout.max_new_tokens,
        "max_prompt_length": rollout.max_prompt_length,
        "max_rows": rollout.max_rows,
        "seed": spec.seed,
    }
    train = RolloutConfig(temperature=rollout.temperature, top_k=rollout.top_k, top_p=rollout.top_p, **shared)
    return {Mode.TRAIN: train, Mode.EVAL: RolloutConfig(temperature=rollout.eval_temperature, **shared)}


def _learner(algorithm: Reinforcement) -> type[RLLearner]:
    match algorithm:
        case Ppo():
            return PPOLearner
        case Gspo():
            return GSPOLearner
        case Dapo():
            return DAPOLearner
        case DrGrpo():
            return DrGRPOLearner
        case Rloo():
            return RLOOLearner
        case Grpo():
            return GRPOLearner
