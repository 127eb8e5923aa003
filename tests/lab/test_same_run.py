"""Two runs are compared: equal ones in everything, and every kind of difference under its own name."""

import dataclasses

import numpy as np
import pytest

from tunix_lab.lab.same_run import Outcome, compare
from tunix_lab.lab.verify_resume import show_view
from tunix_lab.sft.fingerprint import Fingerprint


def outcome() -> Outcome:
    prints = {
        s: Fingerprint(s, f"b{s}", (f"r{s}",), 1.0 / s, 0.5, {"layers.0": f"g{s}"}, {"layers.0": f"p{s}"}, f"o{s}")
        for s in (1, 2)
    }
    return Outcome(
        leaves={"params['w']": np.ones(3, np.float32), "opt_state[0]['count']": np.asarray(2)},
        counters={"train_steps": 2, "data.next_row": 8},
        fingerprints=prints,
        metrics={(1, "train/loss"): 1.0, (2, "train/loss"): float("nan")},
        samples={0: b"{}\n"},
        outputs={"step 2": "aa", "final": "aa"},
        trajectories={"train-000000.parquet": b"a"},
    )


def test_a_run_is_itself():
    checks = compare(outcome(), outcome())
    assert [check.different for check in checks] == [0] * len(checks)
    counts = {check.what: check.compared for check in checks}
    assert counts == {
        "batches": 2,
        "losses": 2,
        "gradients": 2,
        "parameters": 2,
        "optimizer and keys": 2,
        "metrics": 2,
        "samples": 1,
        "trajectories": 1,
        "weights": 2,
        "counters": 2,
        "leaves": 2,
    }


def print_with(step: int, **changes) -> dict[int, Fingerprint]:
    prints = dict(outcome().fingerprints)
    prints[step] = dataclasses.replace(prints[step], **changes)
    return prints


@pytest.mark.parametrize(
    ("change", "what", "told"),
    [
        ({"fingerprints": print_with(2, batch="other")}, "batches", "step 2: "),
        ({"fingerprints": print_with(2, loss=np.nextafter(0.5, 1))}, "losses", "step 2: "),
        ({"fingerprints": print_with(1, grads={"layers.0": "x"})}, "gradients", "step 1 layers.0: g1 became x"),
        ({"fingerprints": print_with(1, params={})}, "parameters", "step 1 layers.0 is missing"),
        ({"fingerprints": print_with(1, rest="x")}, "optimizer and keys", "step 1: o1 became x"),
        ({"metrics": {(1, "train/loss"): 1.0}}, "metrics", "step 2 train/loss is missing"),
        ({"metrics": outcome().metrics | {(2, "eval/loss"): 1.0}}, "metrics", "step 2 eval/loss is new"),
        ({"metrics": outcome().metrics | {(1, "train/loss"): 1.0 + 2**-52}}, "metrics", "step 1 train/loss: "),
        ({"samples": {0: b"[]\n"}}, "samples", "step 0"),
        ({"trajectories": {}}, "trajectories", "train-000000.parquet is missing"),
        ({"outputs": {"step 2": "aa", "final": "bb"}}, "weights", "final: aa became bb"),
        ({"counters": {"train_steps": 2, "data.next_row": 12}}, "counters", "data.next_row: 8 became 12"),
        ({"leaves": outcome().leaves | {"params['w']": np.asarray([1, 1, -1], np.float32)}}, "leaves", "params['w']"),
        ({"leaves": outcome().leaves | {"params['w']": np.ones(3, np.float16)}}, "leaves", "params['w']"),
    ],
)
def test_every_difference_is_found(change, what, told):
    checks = compare(outcome(), dataclasses.replace(outcome(), **change))
    (wrong,) = (check for check in checks if check.different)
    assert wrong.what == what and wrong.different == 1 and wrong.first[0].startswith(told)


def test_a_run_that_was_asked_to_stop_may_have_saved_more():
    more = dataclasses.replace(outcome(), outputs=outcome().outputs | {"step 1": "cc"})
    assert not any(check.different for check in compare(outcome(), more))
    assert any(check.different for check in compare(more, outcome()))


def test_a_view_shows_the_project_without_its_runs(tmp_path):
    """Nor its repository: to git all folders of the view would be missing."""
    home = tmp_path / "home"
    for name in ("runs", "checkpoints", ".git", "data", "experiments"):
        (home / name).mkdir(parents=True)
    (home / "mlflow.db").touch()
    (home / "dvc.yaml").touch()
    assert {path.name for path in show_view(home, tmp_path / "view").iterdir()} == {"data", "experiments", "dvc.yaml"}
