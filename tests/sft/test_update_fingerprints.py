"""The hashes of updates: the same for the same training however it is run, another for every kind of change."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tunix_lab.sft.config import TrainingConfig
from tunix_lab.sft.fingerprint import layer_of
from tunix_lab.sft.fingerprinting import batch_hashes
from tunix_lab.sft.hooks import TrainingHooks
from tunix_lab.sft.peft_trainer import PeftTrainer


class Keep(TrainingHooks):
    def __init__(self):
        self.seen = []

    def on_fingerprint(self, trainer, fingerprint):
        self.seen.append(fingerprint)


@pytest.fixture
def train():
    def run(model, batches, optimizer=None, **config):
        options = {"pbar_description": None, "eval_every_n_steps": 1000, "fingerprint_every_n_steps": 1} | config
        trainer = PeftTrainer(model, optimizer or optax.adam(0.1), TrainingConfig(**options))
        hooks = Keep()
        trainer.with_training_hooks(hooks).train(batches)
        return hooks.seen

    return run


def parts_that_differ(one, other) -> set[str]:
    return {field.name for field in dataclasses.fields(one) if getattr(one, field.name) != getattr(other, field.name)}


def test_layers():
    assert layer_of("layers.3.attn.w") == "layers.3" and layer_of("embedder.w") == "embedder"
    assert layer_of("student.layers.10.w") == "student.layers.10" and layer_of("w") == "w"


def test_same_training_same_hashes(tiny_decoder, train, sft_rows):
    batches = [sft_rows([9, 8, 5], seed=i) for i in range(3)]
    first, second = (train(tiny_decoder(), batches) for _ in range(2))
    assert first == second and [f.step for f in first] == [1, 2, 3]
    assert set(first[0].params) == {"embedder", "final_norm", "layers.0", "layers.1", "layers.2"} == set(first[0].grads)
    assert len(first[0].rows) == 3 and len({*first[0].rows, *first[1].rows}) == 6
    assert len({f.rest for f in first}) == 3 and all(len(text) == 16 for text in first[0].params.values())


def test_what_differs_tells_the_cause(bigram, train, sft_rows):
    batches = [sft_rows([9, 8], seed=i) for i in range(2)]
    base = train(bigram(), batches)[0]
    backwards = train(bigram(), [{name: array[::-1] for name, array in batch.items()} for batch in batches])[0]
    assert backwards.rows == base.rows[::-1] != base.rows and backwards.batch != base.batch
    assert parts_that_differ(base, train(bigram(), batches, optax.adam(0.2))[0]) == {"params"}
    other_decay = train(bigram(), batches, optax.adam(0.1, b2=0.9))[0]
    assert "rest" in parts_that_differ(base, other_decay) and "grads" not in parts_that_differ(base, other_decay)
    model = bigram()
    model.out[...] = model.out[...].at[0, 0].add(0.25)
    assert {"grads", "loss", "params"} <= parts_that_differ(base, train(model, batches)[0])
    assert "batch" not in parts_that_differ(base, train(model, batches)[0])


def test_parameters_are_hashed_every_so_many_updates(bigram, train, sft_rows):
    seen = train(bigram(), [sft_rows([9, 8], seed=i) for i in range(4)], fingerprint_every_n_steps=2)
    assert [bool(f.params) for f in seen] == [False, True, False, True] == [f.rest != "" for f in seen]
    assert all(f.grads and f.batch for f in seen)


def test_random_numbers_are_part_of_the_rest(bigram, train, sft_rows):
    batches = [sft_rows([9, 8])]
    assert train(bigram(dropout=0.5), batches, optax.sgd(0.0))[0].rest != train(bigram(), batches, optax.sgd(0.0))[0].rest


def test_batches_of_any_kind_are_hashed():
    whole, rows = batch_hashes(
        [{"b": np.arange(4), "a": jnp.ones((4, 2), bool)}, {"b": np.arange(4), "a": jnp.ones((4, 2), bool)}]
    )
    assert len(whole) == 16 and len(rows) == 8 and rows[:4] == rows[4:] and len(set(rows)) == 4
    assert batch_hashes([{"b": np.arange(4).astype(np.int32)}])[0] != batch_hashes([{"b": np.arange(4)}])[0]


def test_nothing_is_hashed_unless_asked(bigram, train, sft_rows):
    assert train(bigram(), [sft_rows([9, 8])], fingerprint_every_n_steps=None) == []


@pytest.mark.parametrize("skip", [True, False])
def test_an_update_that_is_not_finite(bigram, make_trainer, history, same_arrays, sft_rows, skip):
    """Skipped, it leaves parameters and moments as they were; applied, it spoils them for good."""
    trainer = make_trainer(bigram(), optax.adam(0.1), skip_nonfinite=skip)
    losses = iter([1.0, float("nan"), 1.0])
    trainer.with_gen_model_input_fn(lambda batch: batch)
    trainer.with_loss_fn(lambda model, scale, **_: scale[0] * model.out[...].sum())
    batches = [{"scale": np.asarray([next(losses)], np.float32), "x": np.zeros(1)} for _ in range(3)]
    trainer.train(batches)
    finite = bool(jnp.isfinite(trainer.state.params["out"]).all())
    assert finite == skip
    if skip:
        assert history(trainer, "skipped") == [0.0, 1.0, 0.0]
        expected = make_trainer(bigram(), optax.adam(0.1))
        expected.with_gen_model_input_fn(lambda batch: batch)
        expected.with_loss_fn(lambda model, scale, **_: scale[0] * model.out[...].sum())
        expected.train([batches[0], batches[2]])
        same_arrays(trainer.state.params, expected.state.params)
