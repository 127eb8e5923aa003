"""Training that was interrupted ends with the same bytes as training that was not."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from tunix_lab.data.pipeline import train_batches
from tunix_lab.models.adapters import add_lora
from tunix_lab.sft.checkpoint_manager import CheckpointManager
from tunix_lab.sft.config import TrainingConfig
from tunix_lab.sft.peft_trainer import PeftTrainer
from tunix_lab.sft.train_state import digest


@pytest.fixture(scope="module")
def examples(sft_rows):
    rows = sft_rows(np.random.default_rng(0).integers(4, 11, 14))
    return [{k: v[i] for k, v in rows.items()} for i in range(14)]


@pytest.fixture(scope="module")
def optimizer():
    schedule = optax.warmup_cosine_decay_schedule(0.0, 0.05, 2, 6)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.inject_hyperparams(optax.adamw)(learning_rate=schedule))


class Stream:
    """Micro-batches of 2 rows, two to an update; 14 rows make an epoch of three and a half updates."""

    def __init__(self, examples):
        self.batches = train_batches(examples, batch_size=4, micro_batch_size=2, seed=1)
        self.read = []

    def __iter__(self):
        return self

    def __next__(self):
        batch = next(self.batches)
        self.read.append(batch["input_tokens"].tolist())
        return batch

    def get_state(self):
        return self.batches.get_state()

    def set_state(self, state):
        self.batches.set_state(state)


METRICS = ("loss", "grad_norm", "learning_rate")


def outcome(trainer):
    """Everything that has to be the same: parameters, moments, counters."""
    state = jax.device_get((trainer.state.params, trainer.state.opt_state))
    return state, (trainer.train_steps, trainer.iter_steps)


def test_resume_bitwise(tiny_decoder, make_trainer, history, same_arrays, examples, optimizer, tmp_path):
    """Six updates, or three, a new trainer on other random weights, and three more; across an epoch's end."""
    whole = make_trainer(tiny_decoder(num_layers=1), optimizer, max_steps=6, gradient_accumulation_steps=2)
    stream = Stream(examples)
    whole.train(stream)
    logged, read = {name: [] for name in METRICS}, []
    for seed, last in ((0, 3), (7, 6)):
        manager = CheckpointManager(tmp_path, every=100)
        trainer = make_trainer(
            tiny_decoder(seed, num_layers=1), optimizer, manager=manager, max_steps=last, gradient_accumulation_steps=2
        )
        part = Stream(examples)
        trainer.train(part)
        trainer.close()
        read += part.read
        for name in METRICS:
            logged[name] += history(trainer, name)
    assert read == stream.read and len(read) == 12
    assert logged == {name: history(whole, name) for name in METRICS}
    (arrays, counts), (expected, expected_counts) = outcome(trainer), outcome(whole)
    same_arrays(arrays, expected)
    assert counts == expected_counts == (6, 12)
    assert digest(trainer.state.params) == digest(whole.state.params)


def test_resume_with_plain_iterables(bigram, make_trainer, history, same_arrays, optimizer, split_rows, sft_rows, tmp_path):
    """Batches that were read are read again and dropped; the last window is short."""
    batches = split_rows(sft_rows([4, 5, 6, 7, 8, 9, 10, 9, 8]), 1)
    whole = make_trainer(bigram(), optimizer, gradient_accumulation_steps=2)
    whole.train(batches)
    losses = []
    for last in (2, 4, 5):
        trainer = make_trainer(
            bigram(3), optimizer, max_steps=last, gradient_accumulation_steps=2, checkpoint_root_directory=str(tmp_path)
        )
        if last == 2:
            trainer = make_trainer(
                bigram(), optimizer, max_steps=2, gradient_accumulation_steps=2, checkpoint_root_directory=str(tmp_path)
            )
        trainer.train(batches)
        trainer.close()
        losses += history(trainer, "loss")
    assert losses == history(whole, "loss") and len(losses) == 5
    (arrays, counts), (expected, expected_counts) = outcome(trainer), outcome(whole)
    same_arrays(arrays, expected)
    assert counts == expected_counts == (5, 9)


def test_resume_with_dropout(bigram, make_trainer, same_arrays, sft_rows, tmp_path):
    """Random-number counters are part of a checkpoint."""
    batches = [sft_rows([10, 8], seed=i) for i in range(4)]
    whole = make_trainer(bigram(dropout=0.5))
    whole.train(batches)
    for last in (2, 4):
        trainer = make_trainer(bigram(dropout=0.5), max_steps=last, checkpoint_root_directory=str(tmp_path))
        trainer.train(batches)
        trainer.close()
    same_arrays(trainer.state.params, whole.state.params)


def test_resume_of_adapters(tiny_decoder, make_trainer, same_arrays, sft_rows, tmp_path):
    """A checkpoint of a model with adapters holds these alone."""
    batches = [sft_rows([10, 8], seed=i) for i in range(4)]
    make = lambda seed: add_lora(tiny_decoder(num_layers=1), rank=2, alpha=4.0, targets=".*q_einsum", seed=seed)  # noqa: E731
    whole = make_trainer(make(0), optax.adam(0.1))
    whole.train(batches)
    for seed, last in ((0, 2), (5, 4)):
        trainer = make_trainer(make(seed), optax.adam(0.1), max_steps=last, checkpoint_root_directory=str(tmp_path))
        trainer.train(batches)
        trainer.close()
    same_arrays(outcome(trainer)[0], outcome(whole)[0])
    assert set(trainer.state.params) == {f"layers.0.attn.q_einsum.w_lora_{factor}" for factor in "ab"}


def test_metadata_of_a_subclass_comes_back(bigram, sft_rows, tmp_path):
    class Custom(PeftTrainer):
        def custom_checkpoint_metadata(self):
            return {"global_step": self.train_steps + 10}

    make = lambda: Custom(  # noqa: E731
        bigram(), optax.sgd(0.1), TrainingConfig(pbar_description=None, checkpoint_root_directory=str(tmp_path))
    )
    first = make()
    assert first.restored_metadata == {}
    first.train([sft_rows([5, 6])])
    first.close()
    assert make().restored_metadata == {"global_step": 11}


def test_a_finished_run_does_nothing_more(bigram, make_trainer, sft_rows, same_arrays, tmp_path):
    batches = [sft_rows([5, 6])] * 3
    make = lambda: make_trainer(bigram(), max_steps=2, checkpoint_root_directory=str(tmp_path))  # noqa: E731
    first = make()
    first.train(batches)
    first.close()
    model = bigram(9)
    again = make_trainer(model, max_steps=2, checkpoint_root_directory=str(tmp_path))
    again.train(batches)
    again.close()
    assert again.train_steps == 2 and not again.metrics_logger.metric_exists("loss")
    same_arrays(nnx.state(model), nnx.state(first.model))
