"""The order of training rows, its state, its independence of batch shapes and hosts, and the tail of evaluation."""

import itertools
import json

import numpy as np
import pytest

from tunix_lab.data.pipeline import eval_batches, train_batches
from tunix_lab.errors import UserError

N = 22


@pytest.fixture(scope="module")
def examples():
    """Row i holds i as its first id, and i + 1 trained tokens."""
    return [
        {
            "input_tokens": np.array([i, 9, 9], np.int32),
            "input_mask": np.array([False, True, i % 2 == 0]),
            "valid": np.array([True, True, True]),
        }
        for i in range(N)
    ]


def rows_of(batches, count=None):
    return [batch["input_tokens"][:, 0].tolist() for batch in itertools.islice(batches, count)]


def flat(lists):
    return list(itertools.chain.from_iterable(lists))


def test_each_epoch_sees_each_row_once_in_a_fresh_order(examples):
    stream = flat(rows_of(train_batches(examples, batch_size=4, seed=0), 3 * N // 2))[: 3 * N]
    epochs = [stream[i * N : (i + 1) * N] for i in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(N))] * 3
    assert len({tuple(epoch) for epoch in [*epochs, range(N)]}) == 4


def test_seed(examples):
    first, again, other = (rows_of(train_batches(examples, batch_size=4, seed=seed), 8) for seed in (0, 0, 1))
    assert first == again != other
    rows_of(train_batches(examples, batch_size=4, seed=2**32 - 1), 1)


def test_batches_are_dicts_of_arrays(examples):
    batch = next(train_batches(examples, batch_size=4, seed=0))
    assert {name: (a.shape, str(a.dtype)) for name, a in batch.items()} == {
        "input_tokens": ((4, 3), "int32"),
        "input_mask": ((4, 3), "bool"),
        "valid": ((4, 3), "bool"),
    }
    for tokens, mask in zip(batch["input_tokens"], batch["input_mask"], strict=True):
        assert mask.tolist() == [False, True, tokens[0] % 2 == 0]  # the columns of a row stay together


@pytest.mark.parametrize("micro", [1, 2, 4, 8])
def test_update_does_not_depend_on_micro_batches(examples, micro):
    whole = rows_of(train_batches(examples, batch_size=8, seed=0), 9)
    parts = rows_of(train_batches(examples, batch_size=8, micro_batch_size=micro, seed=0), 9 * 8 // micro)
    assert {len(part) for part in parts} == {micro}
    assert [flat(parts[i * 8 // micro : (i + 1) * 8 // micro]) for i in range(9)] == whole


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_data_order_elastic(examples, hosts):
    alone = rows_of(train_batches(examples, batch_size=8, micro_batch_size=4, seed=0), 12)
    shares = [
        rows_of(train_batches(examples, batch_size=8, micro_batch_size=4, seed=0, process_index=h, process_count=hosts), 12)
        for h in range(hosts)
    ]
    assert [flat(together) for together in zip(*shares, strict=True)] == alone


@pytest.mark.parametrize(("epochs", "micro", "batches"), [(1, 8, 2), (3, 8, 8), (3, 4, 16), (1, 2, 8)])
def test_finite_epochs_drop_what_does_not_fill_an_update(examples, epochs, micro, batches):
    stream = rows_of(train_batches(examples, batch_size=8, micro_batch_size=micro, seed=0, num_epochs=epochs))
    assert len(stream) == batches
    assert flat(stream) == flat(rows_of(train_batches(examples, batch_size=8, seed=0), batches * micro // 8))


@pytest.mark.parametrize("taken", [0, 1, 5, 6, 11, 12])  # within, at and beyond the ends of epochs
def test_resume_state_is_exact(examples, taken):
    unbroken = rows_of(train_batches(examples, batch_size=4, micro_batch_size=2, seed=3), 30)
    first = train_batches(examples, batch_size=4, micro_batch_size=2, seed=3)
    assert rows_of(first, taken) == unbroken[:taken]
    state = json.loads(json.dumps(first.get_state()))
    rows_of(first, 3)  # what is read after the state was taken does not matter
    second = train_batches(examples, batch_size=4, micro_batch_size=2, seed=3)
    second.set_state(state)
    assert second.get_state() == state
    assert rows_of(second, 30 - taken) == unbroken[taken:]


def test_state_fits_other_hosts_and_other_micro_batches(examples):
    unbroken = flat(rows_of(train_batches(examples, batch_size=8, seed=0), 6))
    first = train_batches(examples, batch_size=8, micro_batch_size=4, seed=0, process_index=1, process_count=2)
    rows_of(first, 6)
    second = train_batches(examples, batch_size=8, micro_batch_size=2, seed=0)
    second.set_state(first.get_state())
    assert flat(rows_of(second, 12)) == unbroken[24:]


def test_foreign_state_is_refused(examples):
    batches = train_batches(examples, batch_size=8, seed=0)
    rows_of(batches, 1)
    with pytest.raises(UserError, match="made with seed = 1, this run has 0"):
        batches.set_state(train_batches(examples, batch_size=8, seed=1).get_state())
    with pytest.raises(UserError, match="made with num_rows = 21, this run has 22"):
        batches.set_state(train_batches(examples[:-1], batch_size=8, seed=0).get_state())
    with pytest.raises(UserError, match="cannot resume at row 8 with micro batches of 6"):
        train_batches(examples, batch_size=6, seed=0).set_state(batches.get_state())


def test_sizes_that_do_not_fit(examples):
    with pytest.raises(UserError, match="batch_size 8 is not a multiple of micro_batch_size 3"):
        train_batches(examples, batch_size=8, micro_batch_size=3, seed=0)
    with pytest.raises(UserError, match="4 rows cannot be shared among 3 processes"):
        train_batches(examples, batch_size=8, micro_batch_size=4, seed=0, process_count=3)
    with pytest.raises(UserError, match="22 rows x 1 epochs do not fill one batch of 32"):
        train_batches(examples, batch_size=32, seed=0, num_epochs=1)
    with pytest.raises(UserError, match="there are no examples"):
        train_batches([], batch_size=8, seed=0)
    with pytest.raises(UserError, match="0 rows cannot be shared"):
        eval_batches(examples, 0)


def test_batch_may_be_larger_than_the_dataset(examples):
    stream = flat(rows_of(train_batches(examples[:3], batch_size=8, seed=0), 3))
    assert sorted(stream) == sorted([0, 1, 2] * 8)


# ---- evaluation ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, 7, 22, 40])
def test_eval_batch_invariance(examples, batch_size):
    batches = eval_batches(examples, batch_size)
    expected = [(i, bool(mask)) for i, e in enumerate(examples) for mask in e["input_mask"] if mask]
    for _ in range(2):  # a second pass is the same
        seen = list(batches)
        assert len(seen) == len(batches) == -(-N // batch_size)
        assert {batch["input_tokens"].shape for batch in seen} == {(batch_size, 3)}
        counted = [
            (int(row[0]), True)
            for b in seen
            for row, mask in zip(b["input_tokens"], b["input_mask"], strict=True)
            for m in mask
            if m
        ]
        assert counted == expected


def test_eval_filler_rows_weigh_nothing_but_have_something_to_attend_to(examples):
    last = list(eval_batches(examples, 8))[-1]
    assert last["input_mask"].any(axis=1).tolist() == [True] * 6 + [False] * 2
    assert last["valid"].any(axis=1).all()
    assert examples[-1]["input_mask"].any()  # the examples themselves are untouched


def test_eval_of_pairs(examples):
    pairs = [
        {"prompt_mask": np.array([True]), "chosen_mask": np.array([True]), "rejected_mask": np.array([True, True])}
        for _ in range(3)
    ]
    last = list(eval_batches(pairs, 2))[-1]
    assert last["prompt_mask"].tolist() == [[True], [True]]
    assert last["chosen_mask"].tolist() == [[True], [False]]
    assert last["rejected_mask"].tolist() == [[True, True], [False, False]]


def test_eval_over_hosts(examples):
    alone = list(eval_batches(examples, 8))
    shares = [list(eval_batches(examples, 8, process_index=h, process_count=2)) for h in range(2)]
    for whole, *parts in zip(alone, *shares, strict=True):
        for name, array in whole.items():
            assert np.array_equal(np.concatenate([part[name] for part in parts]), array)
