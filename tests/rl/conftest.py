"""A small policy, and short ways to sample and train it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import optax
import pytest

from tunix_lab.models.value_head import value_model
from tunix_lab.rl.config import ClusterConfig, RLTrainingConfig, RolloutConfig
from tunix_lab.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix_lab.rl.rl_cluster import RLCluster

ROLLOUT = {"max_tokens_to_generate": 8, "max_prompt_length": 6, "temperature": 1.0}


@pytest.fixture(scope="session")
def policy(tiny_decoder):
    """`policy(seed=0)`: one layer."""
    return lambda seed=0: tiny_decoder(seed, num_layers=1)


@pytest.fixture(scope="session")
def prompts() -> Callable[..., list[dict[str, Any]]]:
    """`prompts(n, batches, **columns)`: different prompts in batches of n, with the column "number"."""

    def make(n: int = 4, batches: int = 100) -> list[dict[str, Any]]:
        letters = [chr(ord("a") + i) for i in range(26)]
        texts = [f"{letters[i % 26]} {letters[(3 * i + 1) % 26]} {letters[i // 26 % 26]}" for i in range(n * batches)]
        rows = [{"prompts": texts[i : i + n], "number": list(range(i, i + n))} for i in range(0, n * batches, n)]
        return rows

    return make


def share_of_even(prompts, completions, **columns):
    """Between 0 and 1, with fractions: the share of words with an even code."""
    return [float(np.mean([sum(word.encode()) % 2 == 0 for word in text.split()] or [0])) for text in completions]


@pytest.fixture(scope="session")
def even_reward():
    return share_of_even


@pytest.fixture(scope="session")
def make_cluster(policy, word_tokenizer):
    """`make_cluster(actor=None, critic=False, optimizer=None, rollout={}, mesh={}, **training)`."""

    def make(actor=None, *, reference=None, critic=False, optimizer=None, rollout=None, mesh=None, cluster=None, **training):
        config = {"pbar_description": None, "eval_every_n_steps": 1000, "max_steps": 3, **training}
        options = {name: config.pop(name) for name in ("checkpoint_manager", "metrics_logger", "reward") if name in config}
        return RLCluster(
            actor=actor or policy(),
            reference=reference,
            critic=value_model(policy(1)) if critic else None,
            tokenizer=word_tokenizer,
            cluster_config=ClusterConfig(
                role_to_mesh=mesh or {},
                training_config=RLTrainingConfig(actor_optimizer=optimizer or optax.sgd(0.1), **config),
                **{"rollout_config": RolloutConfig(**ROLLOUT | (rollout or {})), **(cluster or {})},
            ),
            **options,
        )

    return make


@pytest.fixture(scope="session")
def make_grpo(make_cluster, even_reward):
    """`make_grpo(config={}, rewards=None, learner={}, **cluster)`: a learner without reference."""

    def make(config=None, rewards=None, learner=None, **cluster) -> GRPOLearner:
        config = config if isinstance(config, GRPOConfig) else GRPOConfig(**{"num_generations": 4, "beta": 0.0, **(config or {})})
        return GRPOLearner(make_cluster(**cluster), config, rewards or [even_reward], **learner or {})

    return make


@pytest.fixture(scope="session")
def metrics():
    """`metrics(learner, name, mode="train")`: what was logged."""
    return lambda learner, name, mode="train": learner.trainer.metrics_logger.get_metric_history(name, mode)


@pytest.fixture(scope="session")
def params_of():
    """`params_of(learner)`: the actor's parameters on the host."""
    return lambda learner: {name: np.array(array) for name, array in learner.trainer.state.params.items()}
