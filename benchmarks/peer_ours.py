"""The work of the comparisons, done by tunix_lab. Each job builds what it needs and returns `run(n)`; see `peer_tunix`."""

from collections.abc import Callable
from typing import Any

import jax
import optax
import shapes

from tunix_lab.distillation.distillation_trainer import DistillationTrainer
from tunix_lab.distillation.strategies import LogitStrategy
from tunix_lab.generate.config import CacheConfig
from tunix_lab.generate.sampler import Sampler
from tunix_lab.models.adapters import add_lora
from tunix_lab.models.decoder import Decoder, init_decoder
from tunix_lab.models.gemma3.config import Gemma3Config
from tunix_lab.models.sharding import make_mesh
from tunix_lab.models.value_head import value_model
from tunix_lab.rl.config import ClusterConfig, GRPOConfig, PPOConfig, RLTrainingConfig, Role, RolloutConfig
from tunix_lab.rl.grpo.grpo_learner import GRPOLearner
from tunix_lab.rl.ppo.ppo_learner import PPOLearner
from tunix_lab.rl.rl_cluster import RLCluster
from tunix_lab.sft.config import DPOTrainingConfig, TrainingConfig
from tunix_lab.sft.dpo.dpo_trainer import DPOTrainer
from tunix_lab.sft.hooks import DataHooks
from tunix_lab.sft.peft_trainer import PeftTrainer

Run = Callable[[int], dict[str, Any] | None]
OPTIONS = {"eval_every_n_steps": 10**9, "pbar_description": None}


def decoder(model: str, seed: int = 0) -> Decoder:
    shape = shapes.MODELS[model]
    config = Gemma3Config(**shape, query_scale=shape["head_dim"] ** -0.5, dtype="float32", param_dtype="float32")
    return init_decoder(config, seed)


class Feed(DataHooks):
    """The same batch as often as it is asked for, then the end."""

    def __init__(self, batch: Any):
        self.batch, self.left = batch, 0

    def load_next_train_batch(self, trainer: PeftTrainer) -> Any:
        self.left -= 1
        return self.batch if self.left >= 0 else None

    def load_next_eval_batch(self, trainer: PeftTrainer) -> None:
        return None


def stepping(trainer: PeftTrainer, batch: Any, warm_up: int) -> Run:
    """`run(n)` makes n updates and waits for the last."""
    feed = Feed(batch)
    trainer.with_data_hooks(feed)

    def run(n: int) -> None:
        feed.left = n
        trainer.train(())
        jax.block_until_ready(trainer.state)

    run(warm_up)
    return run


def sft(model: str, rows: int, length: int, warm_up: int = 2, scan_layers: bool = False) -> Run:
    batch = shapes.supervised(0, rows, length, shapes.MODELS[model]["vocab_size"])
    config = TrainingConfig(**OPTIONS, scan_layers=scan_layers)
    return stepping(PeftTrainer(decoder(model), optax.adamw(shapes.LEARNING_RATE), config), batch, warm_up)


def lora(model: str, rows: int, length: int) -> Run:
    batch = shapes.supervised(0, rows, length, shapes.MODELS[model]["vocab_size"])
    adapted = add_lora(decoder(model), **shapes.LORA, seed=0)
    return stepping(PeftTrainer(adapted, optax.adamw(shapes.LEARNING_RATE), TrainingConfig(**OPTIONS)), batch, 2)


def dpo(model: str, rows: int, prompt: int, answer: int) -> Run:
    batch = shapes.pairs(0, rows, prompt, answer, shapes.MODELS[model]["vocab_size"])
    config = DPOTrainingConfig(**OPTIONS, algorithm="dpo", max_prompt_length=prompt, max_response_length=answer)
    trainer = DPOTrainer(decoder(model), decoder(model, 1), optax.adamw(shapes.LEARNING_RATE), config)
    return stepping(trainer, batch, 2)


def orpo(model: str, rows: int, prompt: int, answer: int) -> Run:
    batch = shapes.pairs(0, rows, prompt, answer, shapes.MODELS[model]["vocab_size"])
    config = DPOTrainingConfig(**OPTIONS, algorithm="orpo", max_prompt_length=prompt, max_response_length=answer)
    return stepping(DPOTrainer(decoder(model), None, optax.adamw(shapes.LEARNING_RATE), config), batch, 2)


def distill(model: str, rows: int, length: int) -> Run:
    batch = shapes.supervised(0, rows, length, shapes.MODELS[model]["vocab_size"])
    trainer = DistillationTrainer(
        decoder(model),
        decoder(model, 1),
        optax.adamw(shapes.LEARNING_RATE),
        TrainingConfig(**OPTIONS),
        strategy=LogitStrategy(temperature=2.0, alpha=0.5),
    )
    return stepping(trainer, batch, 2)


def decode(model: str, rows: int, prompt: int, new: int, cache: int, temperature: float, top_p: float | None) -> Run:
    """`run(n)` answers a batch of prompts n times."""
    network, config = decoder(model), decoder(model).config
    sampler = Sampler(network, shapes.Numbers(), CacheConfig(cache, config.num_layers, config.num_kv_heads, config.head_dim))
    texts = shapes.prompts(0, rows, prompt, config.vocab_size)

    def run(n: int) -> dict[str, int]:
        made = 0
        for _ in range(n):
            out = sampler(texts, new, temperature=temperature, top_p=top_p, seed=0, eos_tokens=[shapes.EOS])
            made += sum(map(len, out.tokens))
        return {"tokens": made}

    run(2)
    return run


class Cluster(shapes.Phases, RLCluster):
    """With the phases timed."""

    wait = staticmethod(jax.block_until_ready)


def cluster(
    model: str, prompt: int, new: int, cache: int, top_p: float | None, mean_length: float | None, with_critic: bool
) -> Cluster:
    mesh = make_mesh(1, 1)
    optimizer = optax.adamw(shapes.LEARNING_RATE)
    return Cluster(
        actor=decoder(model),
        reference=decoder(model, 1),
        critic=value_model(decoder(model, 2)) if with_critic else None,
        tokenizer=shapes.Numbers(),
        cluster_config=ClusterConfig(
            role_to_mesh={role: mesh for role in Role},
            training_config=RLTrainingConfig(**OPTIONS, max_steps=10**9, actor_optimizer=optimizer, critic_optimizer=optimizer),
            rollout_config=RolloutConfig(
                max_prompt_length=prompt,
                max_tokens_to_generate=new,
                kv_cache_size=cache,
                temperature=1.0,
                top_p=top_p,
                eos_tokens=shapes.stop_ids(mean_length, shapes.MODELS[model]["vocab_size"]),
            ),
        ),
    )


def learning(learner: Any, prompts: list[str], warm_up: int) -> Run:
    """`run(n)` makes n steps: sampling, rewards, reference, update."""
    gate = shapes.Gate({"prompts": prompts}, learner.train)

    def run(n: int) -> dict[str, float]:
        shapes.phases_of(learner.rl_cluster)
        gate.run(n)
        return shapes.phases_of(learner.rl_cluster)

    learner.rl_cluster.taken = {}
    run(warm_up)
    return run


def grpo(model: str, rows: int, answers: int, prompt: int, warm_up: int, **sampling: Any) -> Run:
    made = cluster(model, prompt, with_critic=False, **sampling)
    learner = GRPOLearner(made, GRPOConfig(num_generations=answers), shapes.reward)
    return learning(learner, shapes.prompts(0, rows, prompt, shapes.MODELS[model]["vocab_size"]), warm_up)


def ppo(model: str, rows: int, prompt: int, warm_up: int, **sampling: Any) -> Run:
    learner = PPOLearner(cluster(model, prompt, with_critic=True, **sampling), PPOConfig(), shapes.reward)
    return learning(learner, shapes.prompts(0, rows, prompt, shapes.MODELS[model]["vocab_size"]), warm_up)


JOBS: dict[str, Callable[..., Run]] = {job.__name__: job for job in (sft, lora, dpo, orpo, distill, decode, grpo, ppo)}
