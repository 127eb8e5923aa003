"""The same training on one device and on meshes of eight, and a checkpoint that moves between them."""

import jax
import numpy as np
import optax
import pytest

from tunix_lab.models.adapters import add_lora
from tunix_lab.models.sharding import make_mesh, place_model
from tunix_lab.sft.config import TrainingConfig
from tunix_lab.sft.dpo.dpo_trainer import DPOTrainer, DPOTrainingConfig
from tunix_lab.sft.peft_trainer import PeftTrainer

UPDATES = 4
MESHES = [(2, 4), (4, 2)]


@pytest.fixture(scope="module")
def batches(sft_rows):
    """Very unequal numbers of trained tokens from device to device."""
    return [sft_rows([10, 3, 3, 3, 9, 10, 4, 5][i:] + [10, 3, 3, 3, 9, 10, 4, 5][:i], seed=i) for i in range(UPDATES)]


def placed(model, mesh):
    if mesh is not None:
        place_model(model, make_mesh(*mesh))
    return model


def fit(model, batches, **config):
    config = TrainingConfig(pbar_description=None, **config)
    trainer = PeftTrainer(model, optax.chain(optax.clip_by_global_norm(5.0), optax.sgd(0.1, momentum=0.9)), config)
    trainer.train(batches, batches[:1])
    trainer.close()
    return trainer


def losses(trainer):
    return [*trainer.metrics_logger.get_metric_history("loss"), *trainer.metrics_logger.get_metric_history("loss", "eval")]


@pytest.fixture(scope="module")
def alone(tiny_decoder, batches):
    """Losses and parameters of one device."""
    trainer = fit(tiny_decoder(num_layers=1), batches)
    return losses(trainer), {name: np.array(array) for name, array in trainer.state.params.items()}


@pytest.mark.parametrize("mesh", MESHES)
def test_dp_invariance(tiny_decoder, batches, alone, mesh):
    trainer = fit(placed(tiny_decoder(num_layers=1), mesh), batches)
    np.testing.assert_allclose(losses(trainer), alone[0], atol=1e-5, rtol=1e-5)
    for name, array in trainer.state.params.items():
        np.testing.assert_allclose(array, alone[1][name], atol=1e-4, rtol=1e-3)
    # parameters and their moments stay where the sharding table puts them
    fsdp, tp = mesh
    gate = trainer.state.params["layers.0.mlp.gate_proj.w"]
    trace = trainer.state.opt_state[1][0].trace["layers.0.mlp.gate_proj.w"]
    for array in (gate, trace):
        assert array.addressable_shards[0].data.shape == (16 // fsdp, 24 // tp)


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [(None, (2, 4)), ((4, 2), None), ((2, 4), (4, 2))])
def test_a_checkpoint_moves_between_meshes(tiny_decoder, batches, alone, tmp_path, first, second):
    folder = {"checkpoint_root_directory": str(tmp_path)}
    start = fit(placed(tiny_decoder(num_layers=1), first), batches, max_steps=2, **folder)
    end = fit(placed(tiny_decoder(5, num_layers=1), second), batches, **folder)
    assert end.train_steps == UPDATES
    logged = [trainer.metrics_logger.get_metric_history("loss") for trainer in (start, end)]
    np.testing.assert_allclose(sum(logged, []), alone[0][:UPDATES], atol=1e-5, rtol=1e-5)


def test_a_batch_that_does_not_divide_is_an_error(tiny_decoder, batches):
    six = {name: value[:6] for name, value in batches[0].items()}
    with pytest.raises(ValueError, match="a batch of 6 rows cannot be split over 4 devices"):
        fit(placed(tiny_decoder(num_layers=1), (4, 2)), [six])


@pytest.mark.slow
def test_dpo_with_adapters_on_a_mesh(tiny_decoder, pair_rows):
    """Reference log-probabilities, adapters and accumulation on eight devices."""
    found = []
    for mesh in (None, (4, 2)):
        model = placed(tiny_decoder(num_layers=1), mesh)
        where = None if mesh is None else make_mesh(*mesh)
        model = add_lora(model, rank=2, alpha=4.0, targets=".*q_einsum", seed=0, mesh=where)
        config = DPOTrainingConfig(pbar_description=None, gradient_accumulation_steps=2)
        trainer = DPOTrainer(model, None, optax.sgd(0.5), config)
        trainer.train([pair_rows(4, seed=i) for i in range(4)])
        found.append(trainer.metrics_logger.get_metric_history("loss"))
    np.testing.assert_allclose(found[1], found[0], atol=1e-5)
    assert len(jax.devices()) == 8
