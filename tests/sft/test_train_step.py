"""One update: the same however its rows are grouped, divided by its own weight, nothing where nothing weighs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tunix_lab.data.pipeline import eval_batches
from tunix_lab.ops.weighted import WeightedMean
from tunix_lab.sft.train_state import flat_params
from tunix_lab.sft.train_step import learning_rate_of

LENGTHS = [10, 3, 7, 4, 10, 5, 3, 8]


def close(first, second, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **({"rtol": 1e-5, "atol": 1e-6} | tolerance)), first, second)


@pytest.fixture(scope="module")
def rows(sft_rows):
    return sft_rows(LENGTHS)


@pytest.fixture(scope="module")
def by_hand(tiny_decoder, rows):
    """Loss and gradients of the whole batch from plain logits and a log-softmax: one mean over all 34 trained tokens."""
    model = tiny_decoder(num_layers=2)
    graph, state = nnx.split(model)

    tokens, positions = jnp.asarray(rows["input_tokens"]), jnp.tile(jnp.arange(10), (8, 1))
    mask = jnp.tile(jnp.tri(10, dtype=bool), (8, 1, 1))  # padding is on the right: nobody real sees it

    @jax.jit
    @jax.value_and_grad
    def loss(state):
        logits, _ = nnx.merge(graph, state)(tokens, positions, None, mask)
        logps = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), tokens[:, 1:, None], axis=-1)[..., 0]
        return -jnp.sum(jnp.where(rows["input_mask"][:, 1:], logps, 0)) / sum(n - 2 for n in LENGTHS)

    value, gradients = loss(state)
    return float(value), {name: np.asarray(g) for name, g in flat_params(gradients).items()}


@pytest.mark.parametrize(("size", "accumulate"), [(8, 1), (4, 2), (1, 8)])
def test_ga_invariance(tiny_decoder, make_trainer, history, numpy_params, split_rows, rows, by_hand, size, accumulate):
    model = tiny_decoder(num_layers=2)
    before = numpy_params(model)
    trainer = make_trainer(model, optax.sgd(1.0), gradient_accumulation_steps=accumulate)
    trainer.train(split_rows(rows, size))
    loss, gradients = by_hand
    assert trainer.train_steps == 1 and trainer.iter_steps == accumulate
    assert history(trainer, "loss") == [pytest.approx(loss, rel=1e-5)]
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in gradients.values()))
    assert history(trainer, "grad_norm") == [pytest.approx(norm, rel=1e-4)]
    close(numpy_params(model), {name: before[name] - gradients[name] for name in before}, rtol=1e-4, atol=1e-5)


def test_tail_window(bigram, make_trainer, history, numpy_params, split_rows, rows):
    """Three micro-batches, two to an update: the last one alone divides by its own tokens."""
    parts = split_rows(rows, 2)[:3]
    whole = [{k: np.concatenate([parts[0][k], parts[1][k]]) for k in rows}, parts[2]]
    grouped, plain = bigram(), bigram()
    first, second = make_trainer(grouped, gradient_accumulation_steps=2), make_trainer(plain)
    first.train(parts)
    second.train(whole)
    assert (first.train_steps, first.iter_steps) == (second.train_steps, second.iter_steps) == (2, 3) or second.iter_steps == 2
    close(history(first, "loss"), history(second, "loss"))
    close(numpy_params(grouped), numpy_params(plain))


def test_micro_batches_of_different_shapes_are_an_error(bigram, make_trainer, split_rows, rows):
    parts = split_rows(rows, 3)  # 3, 3 and 2 rows
    with pytest.raises(ValueError, match="micro-batches of one update differ in shape"):
        make_trainer(bigram(), gradient_accumulation_steps=3).train(parts)


def test_all_masked_noop(bigram, make_trainer, history, same_arrays, rows):
    """A batch without targets changes neither parameters nor moments nor the schedule's count, and is counted."""
    masked = rows | {"input_mask": np.zeros_like(rows["input_mask"])}
    model = bigram()
    trainer = make_trainer(model, optax.adamw(0.1))
    trainer.train([rows])
    before = jax.device_get((trainer.state.params, trainer.state.opt_state))
    trainer.data_hooks = None
    trainer.with_data_hooks(Feed([masked, masked]))
    trainer.train(())
    same_arrays((trainer.state.params, trainer.state.opt_state), before)
    assert history(trainer, "empty_batches") == [0.0, 1.0, 1.0] and trainer.train_steps == 3
    assert history(trainer, "loss")[1:] == [0.0, 0.0] == history(trainer, "grad_norm")[1:]


class Feed:
    """Data hooks that hand out a list."""

    def __init__(self, batches):
        self.batches = iter(batches)

    def load_next_train_batch(self, trainer):
        return next(self.batches, None)

    def load_next_eval_batch(self, trainer):
        return None


def test_a_masked_micro_batch_adds_nothing(bigram, make_trainer, history, numpy_params, rows):
    masked = rows | {"input_mask": np.zeros_like(rows["input_mask"])}
    alone, joined = bigram(), bigram()
    make_trainer(alone).train([rows])
    make_trainer(joined, gradient_accumulation_steps=2).train([masked, rows])
    close(numpy_params(joined), numpy_params(alone))


@pytest.mark.parametrize("size", [1, 3, 7])
def test_eval_batch_invariance(bigram, make_trainer, history, rows, size):
    examples = [{k: v[i] for k, v in rows.items()} for i in range(8)]
    trainer = make_trainer(bigram(), max_steps=1)
    trainer.train([rows], eval_batches(examples, size))
    # before the first update the loss on the training batch is the same mean over the same tokens
    assert history(trainer, "loss", "eval") == [pytest.approx(history(trainer, "loss")[0], rel=1e-5)]


def test_scalar_loss_counts_each_micro_batch_once(bigram, make_trainer, history, numpy_params, rows, split_rows):
    """A loss that has divided already: a mean of means, whatever the number of tokens."""

    def mean_of_table(model, input_tokens, input_mask, valid):
        return jnp.mean(model.table[...] * input_mask.sum())

    model = bigram()
    before = numpy_params(model)
    trainer = make_trainer(model, optax.sgd(1.0), gradient_accumulation_steps=2).with_loss_fn(mean_of_table)
    trainer.train(split_rows(rows, 4))
    # masks of the halves: 8+1+5+2 = 16 and 8+3+1+6 = 18 tokens; their mean 17 is the gradient's factor, over 64·6 entries
    np.testing.assert_allclose(numpy_params(model)["table"], before["table"] - 17 / 384, rtol=1e-5)
    assert history(trainer, "loss") == [pytest.approx(17 * before["table"].mean(), rel=1e-5)]


def test_aux_of_a_loss_is_logged(bigram, make_trainer, history, rows, split_rows):
    def loss(model, input_tokens, input_mask, valid):
        longest = valid.sum(-1).max().astype(jnp.float32)
        tokens = WeightedMean.of(input_tokens.astype(jnp.float32), input_mask)
        return tokens + WeightedMean.of(0 * model.table[...][:1, 0]), {"longest": longest, "id": tokens}

    trainer = make_trainer(bigram(), gradient_accumulation_steps=2).with_loss_fn(loss, has_aux=True)
    trainer.train(split_rows(rows, 4), split_rows(rows, 8))
    assert history(trainer, "longest") == [10.0] == history(trainer, "longest", "eval")  # (10 + 10) / 2
    mean_id = rows["input_tokens"][rows["input_mask"]].mean()  # over all trained tokens, not a mean of two means
    assert history(trainer, "id") == [pytest.approx(mean_id, rel=1e-6)]
    assert history(trainer, "id", "eval") == [pytest.approx(mean_id, rel=1e-6)]
    total = rows["input_tokens"][rows["input_mask"]].sum()
    assert history(trainer, "loss") == [pytest.approx(total / (34 + 2), rel=1e-6)]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_lr_by_optimizer_step(bigram, make_trainer, history, rows, accumulate):
    schedule = optax.join_schedules([optax.linear_schedule(0.0, 1.0, 2), optax.cosine_decay_schedule(1.0, 3)], [2])
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.inject_hyperparams(optax.adamw)(learning_rate=schedule))
    trainer = make_trainer(bigram(), optimizer, gradient_accumulation_steps=accumulate)
    trainer.train([rows] * (5 * accumulate))
    # warm-up 0, 0.5; then the cosine: 1, 0.75, 0.25
    np.testing.assert_allclose(history(trainer, "learning_rate"), [0.0, 0.5, 1.0, 0.75, 0.25], atol=1e-6)


def test_no_learning_rate_is_invented():
    params = {"w": jnp.zeros(3)}
    assert learning_rate_of(optax.adamw(1e-3).init(params)) == {}
    injected = optax.inject_hyperparams(optax.sgd)(learning_rate=0.5).init(params)
    assert float(learning_rate_of(injected)["learning_rate"]) == 0.5


def test_small_update_survives(tiny_decoder, make_trainer, rows):
    """bfloat16 activations on float32 parameters: a relative update of 1e-4 is not rounded away."""
    model = tiny_decoder(num_layers=1, dtype="bfloat16")
    before = np.array(model.layers[0].mlp.up_proj.w.get_value())
    make_trainer(model, optax.sgd(1e-4)).train([rows])
    after = np.array(model.layers[0].mlp.up_proj.w.get_value())
    assert after.dtype == np.float32 and (after != before).mean() > 0.9
