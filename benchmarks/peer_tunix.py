"""The work of the comparisons, done by google-tunix, with the settings that it recommends (`cache_nnx_graph`); see `peer_ours`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import qwix
import shapes
from flax import nnx
from tunix.distillation import distillation_trainer, strategies
from tunix.models.gemma3 import model as gemma3
from tunix.sft import hooks, peft_trainer, utils
from tunix.sft.dpo import dpo_trainer

Run = Callable[[int], dict[str, Any] | None]
OPTIONS = {"eval_every_n_steps": 10**9}


def transformer(model: str, seed: int = 0) -> gemma3.Gemma3:
    shape = dict(shapes.MODELS[model])
    config = gemma3.ModelConfig(
        num_embed=shape.pop("vocab_size"),
        sliding_window_size=shape.pop("sliding_window"),
        local_base_frequency=10_000,
        global_base_frequency=1_000_000,
        param_dtype=jnp.float32,
        **shape,
    )
    network = gemma3.Gemma3(config, rngs=nnx.Rngs(params=seed))
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


JOBS: dict[str, Callable[..., Run]] = {"sft": sft, "lora": lora, "dpo": dpo, "orpo": orpo, "distill": distill}
