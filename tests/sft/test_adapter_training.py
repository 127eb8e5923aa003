"""Training with adapters: they move, all of them, and nothing else does."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from tunix_lab.models.adapters import add_lora
from tunix_lab.sft.train_state import flat_params

TARGETS = ".*q_einsum|.*kv_einsum|.*gate_proj|.*up_proj|.*down_proj|.*attn_vec_einsum"


def everything(model):
    return {name: np.array(value) for name, value in flat_params(nnx.state(model)).items()}


@pytest.mark.parametrize("qtype", [None, "int8"])
def test_only_adapters_move(tiny_decoder, make_trainer, history, sft_rows, qtype):
    base = tiny_decoder(embed_dim=32, hidden_dim=32, num_layers=1)
    quantized = {} if qtype is None else {"weight_qtype": qtype, "tile_size": 8}
    model = add_lora(base, rank=2, alpha=8.0, targets=TARGETS, seed=0, **quantized)
    before = everything(model)
    trainer = make_trainer(model, optax.sgd(0.1))
    trainer.train([sft_rows([10, 7, 5, 9])] * 3)
    after = everything(model)
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    adapters = {name for name in before if "lora" in name}
    assert moved == adapters == set(trainer.state.params) and len(adapters) == 2 * 6  # A and B both
    assert after.keys() == before.keys() and (qtype is None) == (not any("qvalue" in name for name in after))
    losses = history(trainer, "loss")
    assert losses[2] < losses[0]
    # moments are kept for the adapters alone
    assert sum(np.size(x) for x in jax.tree.leaves(trainer.state.opt_state)) <= sum(before[name].size for name in adapters)


def test_the_base_remains_usable(tiny_decoder, make_trainer, numpy_params, sft_rows):
    """Adapters share their base's arrays; training them does not take those away."""
    base = tiny_decoder(num_layers=1)
    before = numpy_params(base)
    make_trainer(add_lora(base, rank=2, alpha=8.0, targets=".*q_einsum", seed=0)).train([sft_rows([10, 7])])
    jax.tree.map(np.testing.assert_array_equal, numpy_params(base), before)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_frozen_weights_are_not_copied(tiny_decoder, make_trainer, sft_rows, accumulate):
    """An update hands them on: the same memory before and after, however large they are."""
    model = add_lora(tiny_decoder(num_layers=1), rank=2, alpha=8.0, targets=".*q_einsum", seed=0)
    trainer = make_trainer(model, gradient_accumulation_steps=accumulate)
    places = lambda: [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(trainer._frozen)]  # noqa: E731
    before = places()
    trainer.train([sft_rows([10, 7])] * 4)
    assert places() == before
