"""The work of the comparisons, done by google-tunix with the settings that it recommends (`cache_nnx_graph`); see `peer_ours`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import qwix
import shapes
from flax import nnx
from tunix.distillation import distillation_trainer, strategies
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.gemma3 import model as gemma3
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.ppo.ppo_learner import PPOConfig, PPOLearner
from tunix.rl.rl_cluster import ClusterConfig, RLCluster, RLTrainingConfig, Role
from tunix.rl.rollout.base_rollout import RolloutConfig
from tunix.sft import hooks, peft_trainer, utils
from tunix.sft.dpo import dpo_trainer

Run = Callable[[int], dict[str, Any] | None]
OPTIONS = {"eval_every_n_steps": 10**9}


def transformer(model: str, seed: int = 0, kind: type[gemma3.Gemma3] = gemma3.Gemma3) -> gemma3.Gemma3:
    shape = dict(shapes.MODELS[model])
    config = gemma3.ModelConfig(
        num_embed=shape.pop("vocab_size"),
        sliding_window_size=shape.pop("sliding_window"),
        local_base_frequency=10_000,
        global_base_frequency=1_000_000,
        param_dtype=jnp.float32,
        **shape,
    )
    network = kind(config, rngs=nnx.Rngs(params=seed))
    # It starts its feed-forward layers at zero, to be loaded over; here they get numbers, as trained ones have.
    for layer in network.layers:
        for i, linear in enumerate((layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj)):
            linear.kernel[...] = 0.02 * jax.random.normal(jax.random.key(i), linear.kernel.shape)
    return network


class Feed(hooks.DataHooks):
    """The same batch as often as it is asked for, then the end."""

    def __init__(self, batch: Any):
        self.batch, self.left = batch, 0

    def load_next_train_batch(self, train_ctx: Any) -> Any:
        self.left -= 1
        return self.batch if self.left >= 0 else None

    def load_next_eval_batch(self, train_ctx: Any) -> Any:
        return None


def stepping(trainer: peft_trainer.PeftTrainer, batch: Any, warm_up: int) -> Run:
    """`run(n)` makes n updates and waits for the last."""
    feed = Feed(batch)
    trainer.with_data_hooks(feed)
    trainer.is_managed_externally = True  # so that `train` can be called again

    def run(n: int) -> None:
        feed.left = n
        trainer.train((), cache_nnx_graph=True)
        jax.block_until_ready(nnx.state(trainer.model))

    run(warm_up)
    return run


def model_input(batch: peft_trainer.TrainingInput) -> dict[str, Any]:
    """As its examples have it."""
    valid = batch.input_tokens != shapes.PAD
    return {
        "input_tokens": batch.input_tokens,
        "input_mask": batch.input_mask,
        "positions": utils.build_positions_from_mask(valid),
        "attention_mask": utils.make_causal_attn_mask(valid),
    }


def supervised_trainer(network: nnx.Module) -> peft_trainer.PeftTrainer:
    trainer = peft_trainer.PeftTrainer(network, optax.adamw(shapes.LEARNING_RATE), peft_trainer.TrainingConfig(**OPTIONS))
    return trainer.with_gen_model_input_fn(model_input)


def supervised_batch(model: str, rows: int, length: int) -> peft_trainer.TrainingInput:
    return peft_trainer.TrainingInput(**shapes.supervised(0, rows, length, shapes.MODELS[model]["vocab_size"]))


def sft(model: str, rows: int, length: int, warm_up: int = 2) -> Run:
    return stepping(supervised_trainer(transformer(model)), supervised_batch(model, rows, length), warm_up)


def lora(model: str, rows: int, length: int) -> Run:
    network = transformer(model)
    provider = qwix.LoraProvider(module_path=shapes.LORA["targets"], rank=shapes.LORA["rank"], alpha=shapes.LORA["alpha"])
    adapted = qwix.apply_lora_to_model(network, provider, **network.get_model_input(), rngs=nnx.Rngs(params=0))
    return stepping(supervised_trainer(adapted), supervised_batch(model, rows, length), 2)


def preference(reference: nnx.Module | None, algorithm: str, model: str, rows: int, prompt: int, answer: int) -> Run:
    config = dpo_trainer.DPOTrainingConfig(**OPTIONS, algorithm=algorithm)
    trainer = dpo_trainer.DPOTrainer(transformer(model), reference, optax.adamw(shapes.LEARNING_RATE), config)
    batch = shapes.pairs(0, rows, prompt, answer, shapes.MODELS[model]["vocab_size"])
    return stepping(trainer, dpo_trainer.TrainingInput(**batch), 2)


def dpo(model: str, **shape: int) -> Run:
    return preference(transformer(model, 1), "dpo", model, **shape)


def orpo(model: str, **shape: int) -> Run:
    return preference(None, "orpo", model, **shape)


def distill(model: str, rows: int, length: int) -> Run:
    vocab_size = shapes.MODELS[model]["vocab_size"]

    def logits(network: nnx.Module, input_tokens: jax.Array, input_mask: jax.Array) -> jax.Array:
        named = model_input(peft_trainer.TrainingInput(input_tokens=input_tokens, input_mask=input_mask))
        return network(input_tokens, named["positions"], None, named["attention_mask"])[0][:, :-1]

    def labels(input_tokens: jax.Array, input_mask: jax.Array) -> jax.Array:
        return jax.nn.one_hot(input_tokens[:, 1:], vocab_size) * input_mask[:, 1:, None]

    trainer = distillation_trainer.DistillationTrainer(
        transformer(model),
        transformer(model, 1),
        strategies.LogitStrategy(logits, logits, labels, temperature=2.0, alpha=0.5),
        optax.adamw(shapes.LEARNING_RATE),
        distillation_trainer.TrainingConfig(**OPTIONS),
    )
    batch = distillation_trainer.TrainingInput(**shapes.supervised(0, rows, length, vocab_size))
    return stepping(trainer, batch, 2)


def decode(model: str, rows: int, prompt: int, new: int, cache: int, temperature: float, top_p: float | None) -> Run:
    """`run(n)` answers a batch of prompts n times. Without a top-p it takes the likeliest tokens, whatever the temperature."""
    network = transformer(model)
    shape = network.config
    sampler = Sampler(network, shapes.Numbers(), CacheConfig(cache, shape.num_layers, shape.num_kv_heads, shape.head_dim))
    texts = shapes.prompts(0, rows, prompt, shape.num_embed)
    choice = {"temperature": temperature, "top_p": 1.0 if top_p is None else top_p} if temperature else {}

    def run(n: int) -> dict[str, int]:
        made = 0
        for _ in range(n):
            out = sampler(texts, new, max_prompt_length=prompt, seed=0, eos_tokens=[shapes.EOS], **choice)
            made += sum(map(len, out.tokens))
        return {"tokens": made}

    run(2)
    return run


class Critic(gemma3.Gemma3):
    """A critic on its decoder: its own helper replaces an `lm_head`, which a decoder with tied embeddings does not have."""

    def __init__(self, config: gemma3.ModelConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.score = nnx.Linear(config.embed_dim, 1, use_bias=False, rngs=rngs)

    def __call__(self, tokens, positions=None, cache=None, attention_mask=None, segment_ids=None):
        x = self.embedder.encode(tokens)
        for layer in self.layers:
            _, x = layer(x, positions, None, attention_mask)
        return self.score(self.final_norm(x)), None


class Cluster(shapes.Phases, RLCluster):
    """With the phases timed."""

    wait = staticmethod(jax.block_until_ready)


def cluster(
    model: str, prompt: int, new: int, cache: int, top_p: float | None, mean_length: float | None, with_critic: bool
) -> Cluster:
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(1, 1), ("fsdp", "tp"))
    optimizer = optax.adamw(shapes.LEARNING_RATE)
    return Cluster(
        actor=transformer(model),
        reference=transformer(model, 1),
        critic=transformer(model, 2, Critic) if with_critic else None,
        tokenizer=shapes.Numbers(),
        cluster_config=ClusterConfig(
            role_to_mesh={role: mesh for role in Role},
            training_config=RLTrainingConfig(**OPTIONS, max_steps=10**9, actor_optimizer=optimizer, critic_optimizer=optimizer),
            rollout_config=RolloutConfig(
                max_prompt_length=prompt,
                max_tokens_to_generate=new,
                kv_cache_size=cache,
                temperature=1.0,
                top_p=1.0 if top_p is None else top_p,
                eos_tokens=shapes.stop_ids(mean_length, shapes.MODELS[model]["vocab_size"]),
            ),
        ),
    )


def learning(learner: Any, prompts: list[str], warm_up: int) -> Run:
    """`run(n)` makes n steps: sampling, rewards, reference, update."""
    gate = shapes.Gate({"prompts": np.array(prompts)}, learner.train)

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
