"""How a rollout is cut into updates: every answer as often as said, groups whole, and nothing more."""

import numpy as np
import pytest

from tunix_lab.errors import UserError
from tunix_lab.rl.update_plan import UpdatePlan


def batch_of(rows: int):
    """Rows that can be told apart."""
    return {
        "number": np.arange(rows),
        "loss_mask": np.ones((rows, 2), bool),
        "is_row": np.ones(rows, bool),
    }


def numbers(update):
    """The rows of an update that weigh something, by micro-batch."""
    return [piece["number"][piece["is_row"]].tolist() for piece in update]


def test_updates_and_micro_batches():
    plan = UpdatePlan.of(4, 2, mini=2, micro=1, iterations=2, shuffle=None)
    assert plan.n_updates == 4 and plan.first_rows.tolist() == [0, 1, 2, 3]
    made = [numbers(update) for update in plan.updates(batch_of(8))]
    assert made == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]] * 2


def test_what_is_missing_is_filled_up_and_weighs_nothing():
    """Three prompts were found of four, and micro-batches of three prompts do not divide four."""
    plan = UpdatePlan.of(4, 1, mini=None, micro=3, iterations=1, shuffle=None)
    [update] = plan.updates(batch_of(3))
    assert [len(piece["number"]) for piece in update] == [3, 3]
    assert numbers(update) == [[0, 1, 2], []]
    assert not update[1]["loss_mask"].any()


def test_shuffling_keeps_groups_whole():
    plan = UpdatePlan.of(6, 2, mini=2, micro=None, iterations=2, shuffle=(0, 7))
    made = [numbers(update)[0] for update in plan.updates(batch_of(12))]
    assert made[0] == plan.first_rows.tolist()
    for iteration in (made[:3], made[3:]):
        assert sorted(sum(iteration, [])) == list(range(12))
    assert all(rows[i + 1] == rows[i] + 1 and rows[i] % 2 == 0 for rows in made for i in (0, 2))
    assert made[:3] != made[3:]
    other = UpdatePlan.of(6, 2, mini=2, micro=None, iterations=2, shuffle=(0, 8))
    assert other.first_rows.tolist() != plan.first_rows.tolist()


def test_a_single_update_keeps_its_order():
    assert UpdatePlan.of(4, 1, None, None, 1, shuffle=(0, 0)).first_rows.tolist() == [0, 1, 2, 3]


def test_prompts_that_do_not_divide():
    with pytest.raises(UserError, match=r"4 prompts cannot be divided into updates of 3 \(mini_batch_size\)"):
        UpdatePlan.of(4, 1, 3, None, 1, None)
