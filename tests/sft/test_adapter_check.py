"""The check of the first updates finds adapters that do not move and frozen weights that do."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tunix_lab.errors import TrainingFailed
from tunix_lab.models.adapters import add_lora
from tunix_lab.sft.adapter_check import AdapterCheck


@pytest.fixture
def adapted(tiny_decoder):
    return lambda **more: add_lora(
        tiny_decoder(num_layers=1, embed_dim=32), rank=2, alpha=8.0, targets=".*_einsum", seed=0, **more
    )


def with_loss(make_trainer, model, loss):
    return make_trainer(model, optax.sgd(0.1)).with_loss_fn(loss)


def test_adapters_that_the_loss_does_not_use_are_named(adapted, make_trainer, sft_rows):
    """A loss that sees one module's adapter: the others never move."""

    def loss(model, input_tokens, **_):
        query = model.layers[0].attn.q_einsum
        return jnp.sum((query.w_lora_a[...] @ query.w_lora_b[...].reshape(2, -1) + 1.0) ** 2)

    with pytest.raises(TrainingFailed, match=r"after 3 updates 4 of 6 adapters have not moved: layers\.0\.attn\.attn_vec_einsum"):
        with_loss(make_trainer, adapted(), loss).train([sft_rows([10, 7])] * 5)


def test_waiting_for_a_warm_up(adapted, make_trainer, sft_rows):
    """Ten updates with learning rate 0 are no fault."""
    rate = optax.piecewise_constant_schedule(1e-3, {})
    warm = optax.join_schedules([optax.constant_schedule(0.0), rate], [10])
    make_trainer(adapted(), optax.sgd(warm)).train([sft_rows([10, 7])] * 14)


@pytest.mark.parametrize("quantized", [{}, {"weight_qtype": "nf4", "tile_size": 8}])
def test_a_single_bit_of_a_frozen_weight(adapted, quantized):
    model = adapted(**quantized)
    state = lambda: nnx.state(model, lambda _, v: not isinstance(v, nnx.LoRAParam))  # noqa: E731
    before = {"a": jnp.zeros(3)}
    check = AdapterCheck(before, state())
    check.after_update(before, state(), 1.0)  # nothing has moved yet, so nothing is said
    leaf = model.layers[0].attn.q_einsum.w
    leaf = leaf if isinstance(leaf, nnx.Variable) else leaf.array.qvalue
    changed = np.array(leaf.get_value())
    changed.flat[5] = np.bitwise_xor(changed.flat[5].astype(np.uint8), 1) if quantized else np.nextafter(changed.flat[5], np.inf)
    leaf.set_value(jnp.asarray(changed, leaf.get_value().dtype))
    with pytest.raises(TrainingFailed, match=r"frozen weights have changed in training: layers\.0\.attn\.q_einsum"):
        check.after_update({"a": jnp.ones(3)}, state(), 1.0)


def test_updates_without_a_gradient_say_nothing():
    """As where all rewards of a batch are alike: weight decay moves the factor that is not zero, and nothing the other."""
    state = lambda: nnx.State({"w": nnx.Param(jnp.ones(2))})  # noqa: E731
    check = AdapterCheck({"a": jnp.ones(3), "b": jnp.zeros(3)}, state())
    for update in range(5):
        check.after_update({"a": jnp.ones(3) * 0.99**update, "b": jnp.zeros(3)}, state(), 0.0)
    with pytest.raises(TrainingFailed, match="after 3 updates 1 of 2 adapters have not moved: b"):
        for _ in range(3):
            check.after_update({"a": jnp.zeros(3), "b": jnp.zeros(3)}, state(), 1.0)
