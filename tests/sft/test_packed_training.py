"""Several texts in a row: the same loss and gradients as one text a row, and no text knows of its neighbours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tunix_lab.ops.masks import segment_causal_mask, segment_positions
from tunix_lab.sft.losses import next_token_loss
from tunix_lab.sft.train_state import flat_params

LENGTHS = (7, 4, 9, 5)  # packed as 7 + 4 and 9 + 5 into rows of 14; the window of the local layers is 4


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    return [rng.integers(3, 64, n) for n in LENGTHS]


@pytest.fixture(scope="module")
def padded(texts):
    rows = {"input_tokens": np.zeros((4, 9), np.int32), "input_mask": np.zeros((4, 9), bool), "valid": np.zeros((4, 9), bool)}
    for i, text in enumerate(texts):
        rows["input_tokens"][i, : len(text)] = text
        rows["valid"][i, : len(text)] = True
        rows["input_mask"][i, 2 : len(text)] = True
    return rows


@pytest.fixture(scope="module")
def packed(texts):
    rows = {name: np.zeros((2, 14), np.int32) for name in ("input_tokens", "segment_ids")}
    rows["input_mask"] = np.zeros((2, 14), bool)
    for row, start, text in zip((0, 0, 1, 1), (0, 7, 0, 9), texts, strict=True):
        here = slice(start, start + len(text))
        rows["input_tokens"][row, here] = text
        rows["segment_ids"][row, here] = 1 if start == 0 else 2
        rows["input_mask"][row, start + 2 : start + len(text)] = True
    return rows


@pytest.fixture(scope="module")
def loss_and_gradient(tiny_decoder):
    """`f(rows)`: the loss's total and count, and the gradient of its mean by dotted path."""
    graph, state = nnx.split(tiny_decoder())

    @jax.jit
    def compute(state, rows):
        def mean(state):
            loss = next_token_loss(nnx.merge(graph, state), **rows)
            return loss.mean, loss

        gradient, loss = jax.grad(mean, has_aux=True)(state)
        return loss.total, loss.count, gradient

    def call(rows):
        total, count, gradient = compute(state, rows)
        return float(total), float(count), {name: np.asarray(g) for name, g in flat_params(gradient).items()}

    return call


def test_packing_equals_padding(loss_and_gradient, packed, padded):
    (total, count, gradient), (total2, count2, gradient2) = loss_and_gradient(packed), loss_and_gradient(padded)
    assert count == count2 == sum(n - 2 for n in LENGTHS)
    assert total == pytest.approx(total2, rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradient, gradient2)


def test_packing_isolation(tiny_decoder, run_model, packed):
    """Other tokens in one segment: the logits of all other segments keep every bit, and its own do change."""
    model, segments = tiny_decoder(), jnp.asarray(packed["segment_ids"])
    mask, positions = segment_causal_mask(segments), segment_positions(segments)
    logits = np.asarray(run_model(model, packed["input_tokens"], positions=positions, mask=mask))
    for segment, others in ((1, 2), (2, 1)):
        here = packed["segment_ids"] == segment
        changed = np.where(here, (packed["input_tokens"] + 7) % 64, packed["input_tokens"])
        after = np.asarray(run_model(model, changed, positions=positions, mask=mask))
        np.testing.assert_array_equal(after[packed["segment_ids"] == others], logits[packed["segment_ids"] == others])
        assert np.abs(after - logits)[here].max() > 0.1


def test_no_text_is_predicted_from_its_neighbour(loss_and_gradient, packed):
    """A mask that marks the first token of a segment as a target changes nothing."""
    careless = packed | {"input_mask": packed["segment_ids"] > 0}
    careful = dict(packed)
    careful["input_mask"] = careless["input_mask"].copy()
    careful["input_mask"][0, 7] = careful["input_mask"][1, 9] = False
    assert loss_and_gradient(careless)[:2] == loss_and_gradient(careful)[:2]


def test_positions_by_hand():
    segments = jnp.array([[1, 1, 1, 2, 2, 0, 0], [1, 2, 3, 3, 3, 3, 0]])
    assert segment_positions(segments).tolist() == [[0, 1, 2, 0, 1, 0, 1], [0, 0, 0, 1, 2, 3, 0]]


def test_training_on_packed_rows(bigram, make_trainer, history, packed, padded):
    """The trainer's own loss takes the segments as they come; this model feels positions, not only distances."""
    first, second = make_trainer(bigram()), make_trainer(bigram())
    first.train([packed])
    second.train([padded])
    assert history(first, "loss") == [pytest.approx(history(second, "loss")[0], rel=1e-5)]
