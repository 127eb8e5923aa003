"""A model that is no decoder and compiles in no time, and short ways to train."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tunix_lab.sft.config import TrainingConfig
from tunix_lab.sft.peft_trainer import PeftTrainer


class Bigram(nnx.Module):
    """Next-token logits from the token and its position; called like a decoder."""

    def __init__(self, seed: int = 0, dropout: float = 0.0):
        rng = np.random.default_rng(seed)
        self.table = nnx.Param(jnp.asarray(rng.standard_normal((64, 6)), jnp.float32))
        self.out = nnx.Param(jnp.asarray(rng.standard_normal((6, 64)), jnp.float32))
        self.dropout = nnx.Dropout(dropout, rngs=nnx.Rngs(dropout=seed)) if dropout else None

    def __call__(self, input_tokens, positions, cache, attention_mask):
        x = self.table[...][input_tokens] + 0.1 * positions[..., None]
        x = x if self.dropout is None else self.dropout(x)
        return x @ self.out[...], None


@pytest.fixture(scope="session")
def bigram() -> type[Bigram]:
    return Bigram


@pytest.fixture(scope="session")
def make_trainer() -> Callable[..., PeftTrainer]:
    """`make_trainer(model, optimizer=SGD, kind=PeftTrainer, **config)`: quiet, evaluating rarely."""

    def make(model, optimizer=None, *, manager=None, **config: Any) -> PeftTrainer:
        config = TrainingConfig(**{"pbar_description": None, "eval_every_n_steps": 1000, **config})
        return PeftTrainer(model, optimizer or optax.sgd(0.1), config, checkpoint_manager=manager)

    return make


@pytest.fixture(scope="session")
def history() -> Callable[..., list[float]]:
    """`history(trainer, "loss", mode="train")`: what was logged."""
    return lambda trainer, name, mode="train": trainer.metrics_logger.get_metric_history(name, mode)


@pytest.fixture(scope="session")
def same_arrays() -> Callable[[Any, Any], None]:
    """Asserts that two pytrees are equal bit for bit."""
    import jax

    def check(first: Any, second: Any) -> None:
        assert jax.tree.structure(first) == jax.tree.structure(second)
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(first), jax.device_get(second))

    return check
