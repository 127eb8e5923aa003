"""The order of training rows, its state, its independence of batch shapes and hosts, and the tail of evaluation."""

import itertools
import json

import numpy as np
import pytest

from tunix_lab.data.order import WINDOW, ByLength, Share
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


@pytest.fixture(scope="module")
def ragged():
    """360 rows of 2 or 3 tokens; row i holds i as its first id. (Grain shuffles a handful of rows more slowly than many.)"""
    real = [np.array([True, True, i % 2 == 0]) for i in range(360)]
    return [{"input_tokens": np.array([i, 9, 9], np.int32), "input_mask": r, "valid": r} for i, r in enumerate(real)]


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


@pytest.mark.parametrize("order", ["mixture", "buckets", "both"])
def test_seed_of_every_order(ragged, order):
    first, again, other = (rows_of(train_batches(ragged, batch_size=8, seed=seed, **ORDERS[order]), 8) for seed in (0, 0, 1))
    assert first == again != other


def test_batches_are_dicts_of_arrays(examples):
    batch = next(train_batches(examples, batch_size=4, seed=0))
    assert {name: (a.shape, str(a.dtype)) for name, a in batch.items()} == {
        "input_tokens": ((4, 3), "int32"),
        "input_mask": ((4, 3), "bool"),
        "valid": ((4, 3), "bool"),
    }
    for tokens, mask in zip(batch["input_tokens"], batch["input_mask"], strict=True):
        assert mask.tolist() == [False, True, tokens[0] % 2 == 0]  # the columns of a row stay together


ORDERS = {
    "plain": {},
    "mixture": {"mixture": [Share(240, 1.0), Share(120, 3.0)]},
    "buckets": {"buckets": [2, 3]},
    "both": {"mixture": [Share(240, 1.0), Share(120, 3.0)], "buckets": [2, 3]},
}
every_order = pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS.keys())


@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize("hosts", [1, 2, 4])
@every_order
def test_data_order_elastic(ragged, hosts, threads, order):
    alone = rows_of(train_batches(ragged, batch_size=8, micro_batch_size=4, seed=0, **order), 12)
    shares = [
        rows_of(
            train_batches(
                ragged,
                batch_size=8,
                micro_batch_size=4,
                seed=0,
                process_index=h,
                process_count=hosts,
                num_threads=threads,
                **order,
            ),
            12,
        )
        for h in range(hosts)
    ]
    assert [flat(together) for together in zip(*shares, strict=True)] == alone


@pytest.mark.parametrize("micro", [1, 2, 4, 8])
@every_order
def test_update_does_not_depend_on_micro_batches(ragged, micro, order):
    whole = rows_of(train_batches(ragged, batch_size=8, seed=0, **order), 9)
    parts = rows_of(train_batches(ragged, batch_size=8, micro_batch_size=micro, seed=0, **order), 9 * 8 // micro)
    assert {len(part) for part in parts} == {micro}
    assert [flat(parts[i * 8 // micro : (i + 1) * 8 // micro]) for i in range(9)] == whole


@pytest.mark.parametrize(("epochs", "micro", "batches"), [(1, 8, 2), (3, 8, 8), (3, 4, 16), (1, 2, 8)])
def test_finite_epochs_drop_what_does_not_fill_an_update(examples, epochs, micro, batches):
    stream = rows_of(train_batches(examples, batch_size=8, micro_batch_size=micro, seed=0, num_epochs=epochs))
    assert len(stream) == batches
    assert flat(stream) == flat(rows_of(train_batches(examples, batch_size=8, seed=0), batches * micro // 8))


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("taken", [0, 1, 39, 40, 41])  # within an update, in an epoch, at its end (40 x 9 rows) and beyond
@every_order
def test_resume_state_is_exact(ragged, taken, order, threads):
    def make():
        return train_batches(ragged, batch_size=18, micro_batch_size=9, seed=3, num_threads=threads, **order)

    unbroken = rows_of(make(), 60)
    first = make()
    assert rows_of(first, taken) == unbroken[:taken]
    state = json.loads(json.dumps(first.get_state()))
    rows_of(first, 3)  # what is read after the state was taken does not matter
    second = make()
    second.set_state(state)
    assert second.get_state() == state
    assert rows_of(second, 60 - taken) == unbroken[taken:]


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


def test_state_of_another_order_is_refused(ragged):
    made = {name: train_batches(ragged, batch_size=8, seed=0, **order) for name, order in ORDERS.items()}
    with pytest.raises(UserError, match="made with mixture = None, this run has"):
        made["mixture"].set_state(made["plain"].get_state())
    with pytest.raises(UserError, match=r"made with buckets = \[2, 3\], this run has None"):
        made["mixture"].set_state(made["both"].get_state() | {"batch_size": None})
    with pytest.raises(UserError, match="made with batch_size = 8, this run has 4"):  # it decides which rows are sorted together
        train_batches(ragged, batch_size=4, seed=0, buckets=[2, 3]).set_state(made["buckets"].get_state())
    with pytest.raises(UserError, match="made with mixture"):
        lighter = [Share(240, 1.0), Share(120, 2.0)]
        train_batches(ragged, batch_size=8, seed=0, mixture=lighter).set_state(made["mixture"].get_state())


# ---- mixtures --------------------------------------------------------------------------------------------------------------


def test_mixture_keeps_the_weights(ragged):
    """Rows 0 … 239 weigh 1, the other 120 weigh 3: in every stretch of 4 rows one is of the first source."""
    stream = flat(rows_of(train_batches(ragged, batch_size=4, seed=0, mixture=[Share(240, 1.0), Share(120, 3.0)]), 240))
    assert [sum(row < 240 for row in stream[i : i + 4]) for i in range(0, 960, 4)] == [1] * 240
    first, second = [row for row in stream if row < 240], [row for row in stream if row >= 240]
    epochs = [first, *(second[i : i + 120] for i in range(0, 720, 120))]
    assert [sorted(epoch) for epoch in epochs] == [list(range(240))] + [list(range(240, 360))] * 6  # each row once, then anew
    assert len(set(map(tuple, epochs))) == 7  # in fresh orders


@pytest.mark.parametrize("weights", [(0.7, 0.3), (5.0, 1.0, 1.0), (0.1, 0.2, 0.7)])
def test_shares_hold_to_within_a_row_or_two(ragged, weights):
    sizes = [160, 100, 100] if len(weights) == 3 else [160, 200]
    mixture = [Share(size, weight) for size, weight in zip(sizes, weights, strict=True)]
    stream = flat(rows_of(train_batches(ragged, batch_size=4, seed=0, mixture=mixture), 100))
    begin = 0
    for part in mixture:
        drawn = np.cumsum([begin <= row < begin + part.rows for row in stream])
        assert np.abs(drawn - np.arange(1, 401) * part.weight / sum(weights)).max() < 2
        begin += part.rows


def test_an_epoch_of_a_mixture_is_as_many_rows_as_there_are(ragged):
    stream = rows_of(train_batches(ragged, batch_size=50, seed=0, num_epochs=2, mixture=[Share(240, 1.0), Share(120, 3.0)]))
    assert len(stream) == 14 and {len(rows) for rows in stream} == {50}  # of 720 rows


def test_a_source_keeps_its_order_whatever_the_others_weigh(ragged):
    def first_source(weight):
        mixture = [Share(240, weight), Share(120, 1.0)]
        return [row for row in flat(rows_of(train_batches(ragged, batch_size=4, seed=0, mixture=mixture), 40)) if row < 240]

    heavy, light = first_source(3.0), first_source(1.0)
    assert len(heavy) > len(light) and heavy[: len(light)] == light


def test_a_mixture_that_does_not_fit(examples):
    for sizes in ((15, 8), (22, 0)):
        with pytest.raises(UserError, match=r"a mixture of sources with \[.*\] rows cannot make up 22 rows"):
            train_batches(examples, batch_size=4, seed=0, mixture=[Share(size, 1.0) for size in sizes])


# ---- buckets ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long():
    """500 rows of 1 … 64 tokens; row i holds i + 1 as its first id."""
    rng = np.random.default_rng(0)
    rows = []
    for i, n in enumerate(rng.integers(1, 65, 500)):
        real = np.arange(64) < n
        rows.append({"input_tokens": np.where(real, i + 1, 0).astype(np.int32), "input_mask": real.copy(), "valid": real})
    return rows


def test_batches_are_cut_to_the_smallest_bucket_that_holds_their_update(long):
    buckets = [16, 32, 64]
    batches = list(itertools.islice(train_batches(long, batch_size=8, micro_batch_size=2, seed=0, buckets=buckets), 400))
    lengths = np.array([batch["valid"].sum(axis=1).max() for batch in batches]).reshape(-1, 4).max(axis=1)
    shapes = [batch["input_tokens"].shape for batch in batches]
    assert shapes == [(2, next(b for b in buckets if b >= n)) for n in lengths for _ in range(4)]
    assert {shape[1] for shape in shapes} == set(buckets)
    for batch in batches[:40]:
        assert {array.shape for array in batch.values()} == {batch["valid"].shape}
        for tokens, mask in zip(batch["input_tokens"], batch["input_mask"], strict=True):
            row = long[tokens[0] - 1]
            assert mask.sum() == row["input_mask"].sum() and tokens.tolist() == row["input_tokens"][: len(tokens)].tolist()


def test_buckets_save_padding(long):
    def padding(**options):
        batches = list(itertools.islice(train_batches(long, batch_size=8, seed=0, **options), 320))
        return 1 - sum(b["valid"].sum() for b in batches) / sum(b["valid"].size for b in batches)

    assert padding() > 0.45 and padding(buckets=[16, 32, 48, 64]) < 0.25


def test_a_window_has_the_rows_it_would_have_without_buckets(long):
    window = WINDOW * 8
    plain, sorted_ = (flat(rows_of(train_batches(long, batch_size=8, seed=0, buckets=b), 3 * WINDOW)) for b in (None, [32, 64]))
    for begin in range(0, 3 * window, window):
        assert sorted(sorted_[begin : begin + window]) == sorted(plain[begin : begin + window])
        assert sorted_[begin : begin + window] != plain[begin : begin + window]


def test_updates_do_not_come_sorted(long):
    lengths = [
        b["valid"].shape[1] for b in itertools.islice(train_batches(long, batch_size=8, seed=0, buckets=[16, 32, 64]), WINDOW)
    ]
    assert lengths != sorted(lengths) and lengths != sorted(lengths, reverse=True)


def test_a_finite_bucketed_stream_ends_with_a_smaller_window(long):
    updates = rows_of(train_batches(long, batch_size=8, seed=0, num_epochs=1, buckets=[32, 64]))
    assert len(updates) == 62 and len(set(flat(updates))) == 496


def test_updates_by_hand():
    """One window: lengths sorted 1 2 | 3 4 | 5 6 make three updates of two rows; their rows keep the order they came in."""
    made = {}
    for seed in range(40):
        by_length = ByLength(range(6), np.array([6, 1, 5, 3, 4, 2]), [2, 4, 8], 2, seed)
        assert len(by_length) == 3
        updates = [by_length[i] for i in range(3)]
        assert sorted((rows.tolist(), length) for rows, length in updates) == [([0, 2], 8), ([1, 5], 2), ([3, 4], 4)]
        made[tuple(length for _, length in updates)] = True
    assert len(made) == 6  # in every order, as the seed says


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_eval_in_buckets_sees_every_row_once(long, batch_size):
    batches = list(eval_batches(long, batch_size, buckets=[16, 32, 64]))
    weights = {}
    for batch in batches:
        assert batch["valid"].shape[1] == next(b for b in (16, 32, 64) if b >= batch["valid"].sum(axis=1).max())
        for tokens, mask in zip(batch["input_tokens"], batch["input_mask"], strict=True):
            weights[int(tokens[0])] = weights.get(int(tokens[0]), 0) + int(mask.sum())
    assert weights == {i + 1: int(row["input_mask"].sum()) for i, row in enumerate(long)}
    widths = [batch["valid"].shape[1] for batch in batches]
    assert widths == sorted(widths) and set(widths) == {16, 32, 64}


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
