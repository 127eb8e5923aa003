"""Reinforcement learning as the documentation shows it: its second example, and the names of fields and methods."""

import dataclasses
import inspect
import re

import grain
import jax
import numpy as np
import optax
import pytest
import qwix
from flax import nnx

import tunix_lab as tunix
from tunix_lab.data.tokenizer_training import train_tokenizer
from tunix_lab.models.catalog import save_model
from tunix_lab.models.decoder import init_decoder
from tunix_lab.models.gemma3.config import Gemma3Config
from tunix_lab.sft.train_state import flat_params
from tunix_lab.tasks.arithmetic import sft_rows
from tunix_lab.tasks.word_problems import split_problems

TINY = Gemma3Config.gemma3_nano().replace(
    num_layers=2, embed_dim=16, hidden_dim=32, num_heads=2, num_kv_heads=1, head_dim=8, attention_pattern=("local", "global")
)
FIELDS = {
    "GRPOConfig": {
        "algo_variant": "grpo",
        "advantage_estimator": "grpo",
        "policy_loss_fn": "clip",
        "loss_agg_mode": "sequence-mean-token-mean",
        "loss_algo": None,
        "num_generations": 2,
        "num_iterations": 1,
        "beta": 0.04,
        "epsilon": 0.2,
        "epsilon_high": None,
    },
    "PPOConfig": {
        "num_iterations": 1,
        "mini_batch_size": None,
        "gamma": 1.0,
        "gae_lambda": 0.95,
        "beta": 0.04,
        "epsilon": 0.2,
        "epsilon_low": None,
        "epsilon_high": None,
        "epsilon_c": None,
        "entropy_coef": None,
        "clip_range_value": 0.2,
        "kl_method": "low_var_kl",
    },
    "RolloutConfig": {
        "max_tokens_to_generate": 64,
        "max_prompt_length": 64,
        "kv_cache_size": None,
        "temperature": 0.9,
        "top_k": None,
        "top_p": None,
        "eos_tokens": None,
        "seed": None,
        "data_type": None,
        "rollout_mapping_config": None,
    },
    "ClusterConfig": {"role_to_logical_axis_rule": None, "rollout_engine": "vanilla", "offload_to_cpu": False},
    "RLTrainingConfig": {
        "critic_optimizer": None,
        "mini_batch_size": None,
        "train_micro_batch_size": None,
        "rollout_micro_batch_size": None,
        "compute_logps_micro_batch_size": None,
    },
}
METHODS = [
    *("generate", "get_old_per_token_logps", "get_ref_per_token_logps", "get_rewards", "get_values"),
    *("update_actor", "update_critic", "sync_weights", "buffer_metrics", "buffer_metrics_async"),
    *("with_external_metrics_logger", "close"),
]


@pytest.mark.parametrize("name", FIELDS)
def test_fields(name):
    found = {field.name: field.default for field in dataclasses.fields(getattr(tunix, name))}
    assert {field: found[field] for field in FIELDS[name]} == FIELDS[name]


def test_names():
    assert [role.value for role in tunix.Role] == ["actor", "critic", "reference", "reward", "rollout"]
    assert set(METHODS) <= set(dir(tunix.RLCluster))
    assert list(inspect.signature(tunix.GRPOLearner).parameters)[:3] == ["rl_cluster", "algo_config", "reward_fns"]
    assert list(inspect.signature(tunix.PPOLearner).parameters)[:2] == ["rl_cluster", "ppo_config"]
    assert list(inspect.signature(tunix.GRPOLearner.train).parameters)[1:] == ["train_ds", "eval_ds", "skip_jit"]


@pytest.fixture(scope="module")
def rows():
    return sft_rows(split_problems(0)["train"], "train", 16, seed=0)


@pytest.fixture(scope="module")
def tokenizer(rows, tmp_path_factory):
    return train_tokenizer(rows, 400, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def local_path(tmp_path_factory) -> str:
    """A folder such as `snapshot_download` gives."""
    folder = tmp_path_factory.mktemp("gemma")
    save_model(flat_params(nnx.state(init_decoder(TINY, seed=0))), TINY, folder)
    return str(folder)


reasoning_start = "<reasoning>"
reasoning_end = "</reasoning>"
solution_start = "<answer>"
solution_end = "</answer>"

match_format = re.compile(
    rf"^[\s]{{0,}}{reasoning_start}.+?{reasoning_end}.*?"
    rf"{solution_start}(.+?){solution_end}[\s]{{0,}}$",
    flags=re.MULTILINE | re.DOTALL,
)


def reward_format(prompts, completions, **kwargs):
    """Reward for correct output format."""
    return [3.0 if match_format.search(c) else 0.0 for c in completions]


def reward_correctness(prompts, completions, answer, **kwargs):
    """Reward for correct numerical answer."""
    scores = []
    for completion, true_answer in zip(completions, answer, strict=True):
        match = match_format.search(completion)
        if match and match.group(1).strip() == true_answer.strip():
            scores.append(3.0)
        else:
            scores.append(0.0)
    return scores


# One version or another of jax and qwix complains about lines of the example.
@pytest.mark.filterwarnings(
    "ignore:The default axis_types will change:DeprecationWarning", "ignore:rngs must be provided:UserWarning"
)
def test_grpo_training_for_math_reasoning(rows, tokenizer, local_path):
    """Example 2 of the documentation, word for word but for its size, its data and where the weights come from."""
    from tunix_lab.models.gemma3 import params_safetensors as params_lib
    from tunix_lab.rl import rl_cluster as rl_lib
    from tunix_lab.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
    from tunix_lab.rl.rollout import base_rollout

    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"))
    gemma = params_lib.create_model_from_safe_tensors(local_path, TINY, mesh)
    lora_provider = qwix.LoraProvider(module_path=".*q_einsum|.*kv_einsum|.*gate_proj", rank=4, alpha=4.0)
    lora_model = qwix.apply_lora_to_model(gemma, lora_provider, **gemma.get_model_input())
    optimizer = optax.adamw(1e-2)
    train_dataset = grain.MapDataset.source(rows).map(lambda x: {"prompts": x["prompt"], "answer": x["answer"]}).batch(2)
    base = {name: np.array(value) for name, value in flat_params(nnx.state(gemma)).items()}

    cluster_config = rl_lib.ClusterConfig(
        role_to_mesh={
            rl_lib.Role.ACTOR: mesh,
            rl_lib.Role.REFERENCE: mesh,
            rl_lib.Role.ROLLOUT: mesh,
        },
        rollout_engine="vanilla",
        offload_to_cpu=False,
        training_config=rl_lib.RLTrainingConfig(
            actor_optimizer=optimizer,
            max_steps=3,
            mini_batch_size=1,
        ),
        rollout_config=base_rollout.RolloutConfig(
            max_tokens_to_generate=16,
            max_prompt_length=64,
            temperature=0.9,
            top_k=50,
        ),
    )

    grpo_config = GRPOConfig(
        num_generations=2,  # Generate 2 responses per prompt
        num_iterations=1,
        beta=0.08,  # KL penalty
        epsilon=0.2,  # Clipping
    )

    rl_cluster = rl_lib.RLCluster(
        actor=lora_model,
        reference=gemma,
        tokenizer=tokenizer,
        cluster_config=cluster_config,
    )

    trainer = GRPOLearner(
        rl_cluster=rl_cluster,
        reward_fns=[reward_format, reward_correctness],
        algo_config=grpo_config,
    )

    trainer.train(train_dataset)

    assert rl_cluster.actor_trainer.train_steps == 3
    logger = rl_cluster.actor_trainer.metrics_logger
    assert logger.get_metric_history("kl")[0] == pytest.approx(0, abs=1e-6)  # fresh adapters add nothing
    assert max(logger.get_metric_history("logp_gap_max")) < 1e-4
    assert {"reward_reward_format", "reward_reward_correctness"} <= {n.removeprefix("train/") for n in logger._history}
    for name, value in flat_params(nnx.state(gemma)).items():
        np.testing.assert_array_equal(value, base[name], err_msg=name)  # the reference is frozen
    rl_cluster.close()
