"""Small real models that are no decoders, and short ways to distil."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tunix_lab.distillation.distillation_trainer import DistillationTrainer
from tunix_lab.sft.config import TrainingConfig

VOCAB = 64


class Table(nnx.Module):
    """Next-token logits from the token and its position; called like a decoder."""

    def __init__(self, seed: int = 0, dropout: float = 0.0, vocab: int = VOCAB):
        rng = np.random.default_rng(seed)
        self.table = nnx.Param(jnp.asarray(rng.standard_normal((vocab, 6)), jnp.float32))
        self.out = nnx.Param(jnp.asarray(rng.standard_normal((6, vocab)), jnp.float32))
        self.dropout = nnx.Dropout(dropout, rngs=nnx.Rngs(dropout=seed)) if dropout else None

    def __call__(self, input_tokens, positions, cache, attention_mask):
        x = self.table[...][input_tokens] + 0.1 * positions[..., None]
        x = x if self.dropout is None else self.dropout(x)
        return x @ self.out[...], None


@pytest.fixture(scope="session")
def table() -> type[Table]:
    return Table


@pytest.fixture(scope="session")
def make_distiller() -> Callable[..., DistillationTrainer]:
    """`make_distiller(student, teacher, strategy=None, optimizer=SGD, **config)`: quiet, evaluating rarely."""

    def make(student, teacher, strategy=None, optimizer=None, *, vocab_mapping=None, manager=None, **config: Any):
        config = TrainingConfig(**{"pbar_description": None, "eval_every_n_steps": 1000, **config})
        return DistillationTrainer(
            student,
            teacher,
            optimizer or optax.sgd(0.1),
            config,
            strategy=strategy,
            vocab_mapping=vocab_mapping,
            checkpoint_manager=manager,
        )

    return make


@pytest.fixture(scope="session")
def history() -> Callable[..., list[float]]:
    """`history(trainer, "loss", mode="train")`: what was logged."""
    return lambda trainer, name, mode="train": trainer.metrics_logger.get_metric_history(name, mode)
