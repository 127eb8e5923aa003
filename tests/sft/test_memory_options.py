"""Scanned layers, recomputed activations and master weights: the same training, with less memory or more precision."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tunix_lab.models.adapters import add_lora
from tunix_lab.models.decoder import for_training
from tunix_lab.models.sharding import make_mesh, place_model
from tunix_lab.sft.config import DPOTrainingConfig
from tunix_lab.sft.dpo.dpo_trainer import DPOTrainer
from tunix_lab.sft.train_state import flat_params
from tunix_lab.sft.train_step import jit_step

TARGETS = ".*q_einsum|.*kv_einsum|.*gate_proj|.*up_proj|.*down_proj|.*attn_vec_einsum"


def adapted(model, **quantized):
    return add_lora(model, rank=2, alpha=8.0, targets=TARGETS, seed=0, **quantized)


def arrays(model, kind=nnx.Param):
    return {name: np.array(value) for name, value in flat_params(nnx.state(model, kind)).items()}


@pytest.fixture(scope="module")
def trained(tiny_decoder, make_trainer, sft_rows, history):
    """`trained(kind, **config)`: parameters and losses after three updates of a decoder of five layers, pattern of two."""

    def train(kind="full", mesh=None, num_layers=5, **config):
        model = tiny_decoder(num_layers=num_layers, embed_dim=32, hidden_dim=32)
        if mesh is not None:
            place_model(model, mesh)
        if kind != "full":
            model = adapted(model, **({} if kind == "lora" else {"weight_qtype": "int8", "tile_size": 8}))
        trainer = make_trainer(model, optax.sgd(0.1), **config)
        trainer.train([sft_rows([10, 7, 5, 9])] * 3)
        return arrays(trainer.model, nnx.Param if kind == "full" else nnx.LoRAParam), history(trainer, "loss")

    return train


@pytest.fixture(scope="module")
def plain(trained):
    return {kind: trained(kind) for kind in ("full", "lora", "qlora")}


@pytest.mark.parametrize(
    ("kind", "scan_layers", "remat"),
    [("full", True, "none"), ("full", True, "block"), ("full", False, "dots"), ("lora", True, "dots"), ("qlora", True, "block")],
)
def test_same_training(trained, plain, kind, scan_layers, remat):
    params, losses = trained(kind, scan_layers=scan_layers, remat=remat)
    assert params.keys() == plain[kind][0].keys()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), params, plain[kind][0])
    np.testing.assert_allclose(losses, plain[kind][1], rtol=1e-5)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_scan_of_a_model_no_deeper_than_its_pattern(trained, num_layers):
    params, losses = trained(num_layers=num_layers, scan_layers=True, remat="block")
    expected = trained(num_layers=num_layers)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), params, expected[0])
    np.testing.assert_allclose(losses, expected[1], rtol=1e-5)


def test_scan_on_a_mesh(trained, plain):
    params, losses = trained("full", mesh=make_mesh(2, 4), scan_layers=True, remat="block")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), params, plain["full"][0])
    np.testing.assert_allclose(losses, plain["full"][1], rtol=1e-4)


def test_memory_that_recomputing_saves(tiny_decoder):
    """XLA's own account of the scratch memory of a gradient through twelve scanned layers, most of it activations."""
    model = tiny_decoder(num_layers=12, embed_dim=32, hidden_dim=256)
    tokens, positions = jnp.zeros((4, 128), jnp.int32), jnp.tile(jnp.arange(128)[None], (4, 1))

    def scratch(remat):
        graph, state = nnx.split(for_training(model, scan_layers=True, remat=remat))
        loss = lambda state: jnp.mean(nnx.merge(graph, state)(tokens, positions, skip_lm_head=True)[0] ** 2)  # noqa: E731
        return jax.jit(jax.grad(loss)).lower(state).compile().memory_analysis().temp_size_in_bytes

    sizes = [scratch(remat) for remat in ("block", "dots", "none")]
    assert sizes[0] < 0.6 * sizes[1] < 0.6 * 0.6 * sizes[2], sizes


def test_what_is_kept_of_a_feed_forward_layer(tiny_decoder):
    """Scratch memory of a gradient through eight layers whose widest array, [512 tokens, 1024], is 2 MiB.

    Gate, up and their product are kept, 3 · 8 · 2 MiB; one layer at a time may need as much again. What lies between gate and
    product would be twice 2 MiB more in every layer, and is computed again.
    """
    layers, width = 8, 1024
    graph, state = nnx.split(tiny_decoder(num_layers=layers, embed_dim=8, hidden_dim=width))
    tokens, positions = jnp.zeros((4, 128), jnp.int32), jnp.tile(jnp.arange(128)[None], (4, 1))
    loss = lambda state: jnp.mean(nnx.merge(graph, state)(tokens, positions, skip_lm_head=True)[0] ** 2)  # noqa: E731
    scratch = jit_step(jax.grad(loss)).lower(state).compile().memory_analysis().temp_size_in_bytes
    widest = tokens.size * width * 4
    attention = layers * 4 * 4 * 128 * 128 * 4
    assert scratch < (3 * layers + 6) * widest + attention


def test_adapters_off_as_reference_of_a_scan(tiny_decoder, pair_rows):
    """DPO from the policy itself: ln 2 at the start, with stacked layers too."""
    config = DPOTrainingConfig(pbar_description=None, max_steps=2, scan_layers=True, remat="dots")
    trainer = DPOTrainer(adapted(tiny_decoder(num_layers=4, embed_dim=32, hidden_dim=32)), None, optax.sgd(0.05), config)
    trainer.train([pair_rows(4)] * 2)
    losses = trainer.metrics_logger.get_metric_history("loss")
    assert losses[0] == pytest.approx(np.log(2), abs=1e-5) and losses[1] < losses[0]


def test_layers_that_differ_cannot_be_stacked(tiny_decoder, make_trainer, bigram):
    some = add_lora(tiny_decoder(num_layers=4), rank=2, alpha=8.0, targets="layers/0/.*q_einsum", seed=0)
    with pytest.raises(ValueError, match="the layers differ in their parameters"):
        make_trainer(some, scan_layers=True)
    with pytest.raises(ValueError, match="are for this library's decoders"):
        make_trainer(bigram(), remat="block")


def test_stacked_layers_do_not_decode(tiny_decoder):
    stacked = for_training(tiny_decoder(), scan_layers=True, remat="none")
    with pytest.raises(ValueError, match="stacked layers are for training"):
        stacked(jnp.zeros((1, 2), jnp.int32), jnp.zeros((1, 2), jnp.int32), {"layer_0": {}})


class Point(nnx.Module):
    """One bfloat16 number, trained away from 1."""

    def __init__(self):
        self.x = nnx.Param(jnp.ones((1,), jnp.bfloat16))


@pytest.mark.parametrize(("master", "reached"), [("float32", 1 - 100 * 1e-4), (None, 1.0)])
def test_small_update_survives(make_trainer, master, reached):
    """Hundred steps of 1e-4 each, far below bfloat16's resolution of 2⁻⁸ near 1: with a float32 master they add up to 0.01.

    A hundred roundings of a float32 near 1 by half of 2⁻²⁴ each make 3e-6.
    """
    model = Point()
    trainer = make_trainer(model, optax.sgd(1e-4), master_dtype=master).with_loss_fn(lambda model, **_: model.x[...].sum())
    trainer.train([{"input_tokens": np.zeros((1, 1), np.int32)}] * 100)
    assert float(trainer.state.params["x"][0]) == pytest.approx(reached, abs=3e-6)
    assert model.x.get_value().dtype == jnp.bfloat16 and float(model.x.get_value()[0]) == pytest.approx(reached, abs=2**-8)


def test_a_bfloat16_decoder_with_masters(tiny_decoder, make_trainer, sft_rows):
    """What is trained, its gradient and its moments are float32; the model computes in bfloat16 and gets rounded weights back."""
    model = tiny_decoder(num_layers=1, dtype="bfloat16", param_dtype="bfloat16")
    trainer = make_trainer(model, optax.adam(1e-3))
    trainer.train([sft_rows([10, 7])] * 2)
    floats = [
        a for a in jax.tree.leaves((trainer.state.params, trainer.state.opt_state)) if jnp.issubdtype(a.dtype, jnp.floating)
    ]
    assert {a.dtype for a in floats} == {jnp.dtype("float32")}
    params = flat_params(nnx.state(trainer.model))
    assert {a.dtype for a in params.values()} == {jnp.dtype("bfloat16")}
    for name, value in params.items():
        np.testing.assert_array_equal(value, trainer.state.params[name].astype(jnp.bfloat16))


def test_resume_of_a_scanned_run(tiny_decoder, make_trainer, sft_rows, tmp_path):
    """Stacked parameters are saved and restored; the result is that of a run that was not interrupted."""
    batches = [sft_rows([10, 7, 5, 9], seed=i) for i in range(4)]
    config = {"scan_layers": True, "remat": "block"}
    folder = {"checkpoint_root_directory": str(tmp_path)}
    whole = make_trainer(tiny_decoder(num_layers=4), optax.adam(1e-2), **config)
    whole.train(batches)
    for steps in (2, 4):
        part = make_trainer(tiny_decoder(num_layers=4), optax.adam(1e-2), max_steps=steps, **folder, **config)
        part.train(batches)
        part.close()
    jax.tree.map(np.testing.assert_array_equal, arrays(part.model), arrays(whole.model))
