"""The loop: hooks, ends, stops, any model and any loss, and the caller's model afterwards."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tunix_lab.sft.checkpoint_manager import CheckpointManager
from tunix_lab.sft.hooks import DataHooks, TrainingHooks
from tunix_lab.sft.peft_trainer import PeftTrainer, TrainingConfig, TrainingInput


@pytest.fixture(scope="module")
def batches(sft_rows):
    return [sft_rows([10, 6], seed=i) for i in range(6)]


def test_user_model_learns(bigram, make_trainer, history, batches):
    trainer = make_trainer(bigram())
    trainer.train(batches[:1] * 30)
    losses = history(trainer, "loss")
    assert len(losses) == 30 and losses[-1] < 0.5 * losses[0]


def test_the_callers_model_has_the_trained_weights(bigram, make_trainer, numpy_params, batches):
    model = bigram()
    before = numpy_params(model)
    trainer = make_trainer(model)
    trainer.train(batches)
    after = numpy_params(model)
    assert not np.array_equal(after["table"], before["table"])
    np.testing.assert_array_equal(after["table"], trainer.state.params["table"])
    assert trainer.model is model


def test_the_callers_model_is_usable_after_an_error(bigram, make_trainer, numpy_params, batches):
    def broken():
        yield from batches[:2]
        raise OSError("the disk is gone")

    model, expected = bigram(), bigram()
    with pytest.raises(OSError, match="the disk is gone"):
        make_trainer(model).train(broken())
    make_trainer(expected).train(batches[:2])
    jax.tree.map(np.testing.assert_array_equal, numpy_params(model), numpy_params(expected))


def test_skip_jit(bigram, make_trainer, numpy_params, history, batches):
    plain, compiled = bigram(), bigram()
    first, second = make_trainer(plain), make_trainer(compiled)
    first.train(batches[:2], batches[:1], skip_jit=True)
    second.train(batches[:2], batches[:1])
    for mode in ("train", "eval"):
        np.testing.assert_allclose(history(first, "loss", mode), history(second, "loss", mode), rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), numpy_params(plain), numpy_params(compiled))


@pytest.mark.parametrize(("accumulate", "max_steps", "read"), [(1, 3, 3), (2, 2, 4), (1, 100, 6), (4, None, 6)])
def test_max_steps_reads_no_batch_too_many(bigram, make_trainer, batches, accumulate, max_steps, read):
    seen = []
    trainer = make_trainer(bigram(), gradient_accumulation_steps=accumulate, max_steps=max_steps)
    trainer.train(seen.append(i) or batch for i, batch in enumerate(batches))
    assert seen == list(range(read)) and trainer.iter_steps == read
    assert trainer.train_steps == -(-read // accumulate)


class Recorder(TrainingHooks):
    """Writes down every call under the documentation's names."""

    def __init__(self):
        self.calls = []

    def on_train_begin(self, trainer):
        self.calls.append("train")

    def on_train_step_begin(self, trainer):
        self.calls.append(f"begin {trainer.train_steps + 1}")

    def on_train_step_end(self, trainer, train_step, train_loss):
        assert isinstance(train_loss, float)
        self.calls.append(f"end {train_step}")

    def on_update(self, trainer):
        self.calls.append(f"update {trainer.train_steps}")

    def on_eval_begin(self, trainer):
        self.calls.append("eval")

    def on_eval_end(self, trainer, eval_loss):
        assert isinstance(eval_loss, float)
        self.calls.append(f"evaluated {trainer.train_steps}")

    def on_train_end(self, trainer):
        self.calls.append("over")


class OldRecorder(TrainingHooks):
    """The same under the original library's names."""

    def __init__(self):
        self.calls = []

    def on_train_start(self, trainer):
        self.calls.append("train")

    def on_train_step_start(self, trainer):
        self.calls.append(f"begin {trainer.train_steps + 1}")

    def on_eval_step_start(self, trainer):
        self.calls.append("eval")

    def on_eval_step_end(self, trainer, eval_loss):
        self.calls.append(f"evaluated {trainer.train_steps}")

    on_train_step_end, on_update, on_train_end = Recorder.on_train_step_end, Recorder.on_update, Recorder.on_train_end


@pytest.mark.parametrize("recorder", [Recorder, OldRecorder])
def test_order_of_hooks(bigram, make_trainer, batches, recorder):
    hooks = recorder()
    trainer = make_trainer(bigram(), eval_every_n_steps=2).with_training_hooks(hooks)
    trainer.train(batches[:3], batches[:2])
    assert hooks.calls == [
        *("train", "eval", "evaluated 0"),
        *("begin 1", "update 1"),
        *("begin 2", "end 1", "end 2", "eval", "evaluated 2", "update 2"),  # an evaluation waits for the update before it
        *("begin 3", "update 3", "end 3", "over"),
    ]


class Feed(DataHooks):
    """Three batches to train on, two for each evaluation."""

    def __init__(self, batches):
        self.train, self.batches = iter(batches[:3]), batches
        self.eval = iter(())
        self.asked = []

    def load_next_train_batch(self, trainer):
        self.asked.append(trainer.iter_steps)
        return next(self.train, None)

    def load_next_eval_batch(self, trainer):
        batch = next(self.eval, None)
        if batch is None:
            self.eval = iter(self.batches[:2])
        return batch


def test_data_hooks(bigram, make_trainer, history, batches):
    feed = Feed(batches)
    feed.load_next_eval_batch(None)  # the first pass begins
    hooked = make_trainer(bigram(), eval_every_n_steps=2).with_data_hooks(feed)
    hooked.train(())
    plain = make_trainer(bigram(), eval_every_n_steps=2)
    plain.train(batches[:3], batches[:2])
    assert feed.asked == [0, 1, 2, 3]
    for mode in ("train", "eval"):
        assert history(hooked, "loss", mode) == history(plain, "loss", mode)


def test_data_hooks_must_be_written(bigram, make_trainer):
    with pytest.raises(NotImplementedError):
        make_trainer(bigram()).with_data_hooks(DataHooks()).train(())


def test_training_input_and_gen_model_input_fn(tiny_decoder, make_trainer, history, numpy_params, batches):
    """The documentation's way: TrainingInput, and a function that adds positions and the attention mask."""
    from tunix_lab.ops.masks import causal_mask, positions_from_mask

    def gen_model_input(batch: TrainingInput):
        valid = batch.input_tokens != 0
        return {
            "input_tokens": batch.input_tokens,
            "input_mask": batch.input_mask,
            "positions": positions_from_mask(valid),
            "attention_mask": causal_mask(valid),
        }

    inputs = [TrainingInput(input_tokens=b["input_tokens"], input_mask=b["input_mask"]) for b in batches[:2]]
    ours, plain, bare = (tiny_decoder(num_layers=1) for _ in range(3))
    first = make_trainer(ours).with_gen_model_input_fn(gen_model_input)
    first.train(inputs)
    second = make_trainer(plain)
    second.train(batches[:2])
    third = make_trainer(bare)
    third.train(inputs)  # right padding needs no mask
    np.testing.assert_allclose(history(first, "loss"), history(second, "loss"), rtol=1e-5)
    np.testing.assert_allclose(history(third, "loss"), history(second, "loss"), rtol=1e-5)


def test_a_new_loss_is_compiled_anew(bigram, make_trainer, history, batches):
    trainer = make_trainer(bigram(), max_steps=1)
    trainer.train(batches)
    trainer.config.max_steps = 2
    trainer.with_loss_fn(lambda model, **_: jnp.sum(model.table[...] * 0) + 7.0)
    trainer.train(batches)
    assert history(trainer, "loss")[-1] == 7.0


@pytest.mark.parametrize("resumable", [False, True])
def test_train_again_goes_on_where_it_stopped(bigram, make_trainer, numpy_params, batches, resumable):
    """Two calls of `train` on the same data read it once through."""
    data = (lambda: Counter(batches)) if resumable else (lambda: batches)
    twice, once = bigram(), bigram()
    trainer = make_trainer(twice, max_steps=2)
    trainer.train(data())
    trainer.config.max_steps = 5
    trainer.train(data())
    make_trainer(once, max_steps=5).train(data())
    jax.tree.map(np.testing.assert_array_equal, numpy_params(twice), numpy_params(once))


class Counter:
    """A resumable iterator over a list."""

    def __init__(self, batches):
        self.batches, self.at = batches, 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.at == len(self.batches):
            raise StopIteration
        self.at += 1
        return self.batches[self.at - 1]

    def get_state(self):
        return {"at": self.at}

    def set_state(self, state):
        self.at = state["at"]


def test_request_stop_saves(bigram, make_trainer, batches, tmp_path):
    class StopAtTwo(TrainingHooks):
        def on_update(self, trainer):
            if trainer.train_steps == 2:
                trainer.request_stop()

    manager = CheckpointManager(tmp_path, every=100)
    trainer = make_trainer(bigram(), manager=manager).with_training_hooks(StopAtTwo())
    trainer.train(itertools.cycle(batches))
    trainer.close()
    assert trainer.stopped_early and trainer.train_steps == 2
    assert CheckpointManager(tmp_path).latest_step() == 2


def test_overriding_the_trainer(bigram, history, batches):
    """What subclasses may override: preparation on the host, and the metrics' way out."""

    class Custom(PeftTrainer):
        def __init__(self, *args):
            super().__init__(*args)
            self.seen = []

        def _prepare_inputs(self, input_data):
            return input_data | {"input_mask": np.zeros_like(input_data["input_mask"])}

        def _post_process_train_step(self, aux):
            self.seen.append(("train", aux["loss"]))

        def _post_process_eval_step(self, aux):
            self.seen.append(("eval", aux["loss"]))

    import optax

    trainer = Custom(bigram(), optax.sgd(0.1), TrainingConfig(pbar_description=None))
    trainer.train(batches[:1], batches[:1])
    assert trainer.seen == [("eval", 0.0), ("train", 0.0)]


def test_other_variables_travel_along(bigram, make_trainer, batches):
    """Random-number counters of a dropout layer move with every update and come back to the caller's model."""
    model = bigram(dropout=0.5)
    make_trainer(model).train(batches[:3])
    assert int(model.dropout.rngs.count.get_value()) == 3


def test_left_padding(tiny_decoder, make_trainer, history, batches):
    """The same rows with their padding in front give the same losses over two updates."""
    left = []
    for batch in batches[:2]:
        shift = [np.roll(row, 10 - n) for row, n in zip(np.arange(10)[None].repeat(2, 0), batch["valid"].sum(1), strict=True)]
        left.append({k: np.take_along_axis(v, np.stack(shift), 1) for k, v in batch.items()})
    assert not left[0]["valid"][1, 0]
    first, second = (make_trainer(tiny_decoder(num_layers=1)) for _ in range(2))
    first.train(batches[:2])
    second.train(left)
    np.testing.assert_allclose(history(first, "loss"), history(second, "loss"), rtol=1e-5)


def test_two_trainers_never_meet(bigram, make_trainer, history, batches):
    first, second = make_trainer(bigram(0)), make_trainer(bigram(1))
    first.train(batches[:2])
    second.train(batches[:3])
    assert len(history(first, "loss")) == 2 and len(history(second, "loss")) == 3
    assert history(first, "loss")[0] != history(second, "loss")[0]


def test_throughput_is_logged(bigram, make_trainer, history, batches):
    trainer = make_trainer(bigram())
    trainer.train(batches[:3])
    assert len(history(trainer, "perf/step_s")) == 3 == len(history(trainer, "perf/tokens_per_s"))
    for seconds, rate in zip(history(trainer, "perf/step_s"), history(trainer, "perf/tokens_per_s"), strict=True):
        assert seconds * rate == pytest.approx(16)  # 10 + 6 real tokens


def test_config_bounds():
    with pytest.raises(ValueError, match="TrainingConfig.max_steps must be greater than 0, got 0"):
        TrainingConfig(max_steps=0)
    with pytest.raises(ValueError, match="gradient_accumulation_steps must be greater than 0"):
        TrainingConfig(gradient_accumulation_steps=0)
    assert TrainingConfig().get_with_default("max_steps", 7) == 7
