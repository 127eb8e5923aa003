"""`tunix-lab diff` on hand-made run directories: each section of its answer, its JSON, and its exit code."""

import json
from pathlib import Path

import numpy as np
import pytest
from hand_made_rollouts import rollout
from typer.testing import CliRunner

from tunix_lab.cli.main import app
from tunix_lab.lab.record.fingerprints import Fingerprint
from tunix_lab.lab.record.journal import Journal
from tunix_lab.lab.record.trajectories import write_trajectories
from tunix_lab.lab.run_diff import diff_runs, patched

LAYERS = ("embedder", "layers.0", "layers.1", "final_norm")
RESOLVED = (
    "name: x\nseed: {seed}\nmodel: {{init: {{kind: random}}}}\noptimizer: {{learning_rate: {rate}}}\ntracking: {{tags: {{}}}}\n"
)
INPUTS = [
    {"role": "data train", "name": "data/train.jsonl", "path": "data/train.jsonl", "digest": "a" * 32},
    {"role": "tokenizer", "name": "data/tokenizer", "path": "data/tokenizer", "digest": "b" * 32},
]
SURROUNDINGS = {
    "git": {"commit": "c" * 40, "untracked": [], "left_out": []},
    "package": "d" * 64,
    "platform": "Linux",
    "cpu": {"model": "Fast", "count": 2},
    "hardware": {"device_kind": "cpu", "device_count": 1, "jax": {"enable_x64": False}},
    "versions": {"python": "3.12.1", "jax": "0.10.2"},
    "environment": {},
    "lock_files": {},
    "input_files": INPUTS,
    "chat_template": "e" * 64,
}


@pytest.fixture
def a_run(make_run):
    """`a_run(id, last=…, at={step: changes}, seed=…, rate=…, params=…, **manifest)`: a finished run with fingerprints."""

    def make(run_id: str, *, last=4, at=None, seed=0, rate=0.1, params="f" * 64, fingerprints=True, **changes) -> Path:
        run_dir = make_run(run_id, **(SURROUNDINGS | changes))
        (run_dir / "resolved.yaml").write_text(RESOLVED.format(seed=seed, rate=rate))
        with Journal.open(run_dir) as journal:
            for step in range(1, last + 1):
                hashes = {layer: f"{layer}{step}" for layer in LAYERS}
                whole = {"batch": f"b{step}", "rows": (f"r{step}", f"s{step}"), "loss": 1 / step, "grad_norm": 0.5}
                whole |= {"grads": hashes, "params": hashes, "rest": "r"} | (at or {}).get(step, {})
                if fingerprints:
                    journal.fingerprint(Fingerprint(step=step, **whole))
                journal.metrics(step, {"train/loss": whole["loss"], "perf/tokens_per_s": float(hash(run_id))})
        if params is not None:
            (run_dir / "run.json").write_text(json.dumps({"params_digest": params}))
        return run_dir

    return make


@pytest.fixture
def diff(tmp_path, monkeypatch):
    """`diff("one", "two", …)` as on the command line."""
    monkeypatch.setenv("TUNIX_LAB_HOME", str(tmp_path))
    return lambda *arguments: CliRunner().invoke(app, ["diff", *arguments])


def test_the_same_run_twice(a_run, diff):
    a_run("one-1"), a_run("two-2")
    done = diff("one", "two", "--exit-code")
    assert done.exit_code == 0
    for line in (
        "configuration: the same",
        "environment: the same",
        "data: the same",
        "updates: the same, bit for bit, up to step 4",
        "metrics: 4 train and eval values, all the same",  # throughput is no result
        "final parameters: the same bytes",
    ):
        assert line in done.output


def test_a_run_that_went_on_with_something_else_is_told(a_run, diff):
    """What each run has otherwise than it began with, once; its environment is that of its first attempt alone."""
    a_run("one-1")
    began = {"git.commit": "aaa", "versions.jax": "0.10.2"}
    two = a_run("two-2")
    for origin in (began, began, began | {"git.commit": "bbb"}, began | {"git.commit": "bbb", "versions.jax": "0.11"}):
        with Journal.open(two, origin) as journal:
            journal.finish("finished")
    done = diff("one", "two")
    said = "run B went on with something else than it began with:\n"
    said += "  attempt 4 git.commit: aaa → bbb\n  attempt 5 versions.jax: 0.10.2 → 0.11\n"
    assert said in done.output and "run A went on" not in done.output
    found = json.loads(diff("one", "two", "--json").output)["went_on"]
    assert found[0] == [] and found[1][0] == {"name": "attempt 4 git.commit", "a": "aaa", "b": "bbb"}


def test_everything_that_differs_is_said(a_run, diff):
    a_run("one-1")
    other = [INPUTS[0] | {"digest": "9" * 32}, INPUTS[1]]
    git = {"commit": "c" * 40, "untracked": [{"path": "scorer.py", "sha256": "1" * 64}], "left_out": []}
    changed = {
        "input_files": other,
        "git": git,
        "versions": {"python": "3.12.1", "jax": "0.11.0"},
        "environment": {"XLA_FLAGS": "--x"},
    }
    two = a_run("two-2", rate=0.2, at={2: {"batch": "x", "rows": ("x", "y"), "loss": 0.75}}, params="0" * 64, **changed)
    (two / "dirty.patch").write_bytes(b"diff --git a/code.py b/code.py\n--- a/code.py\n+++ b/code.py\n@@ -1 +1 @@\n-a\n+b\n")
    text = " ".join(diff("one", "two").output.split())
    for part in (
        "configuration: 1 differs A B optimizer.learning_rate 0.1 0.2",
        "environment: 4 differ",
        "version jax 0.10.2 0.11.0",
        "$XLA_FLAGS – --x",
        "code scorer.py – untracked (11111111)",
        "code code.py – changed (",
        f"data: 1 differs A B data train {'a' * 32} {'9' * 32}",
        "updates: diverge at step 2: batch content 2 of 2 rows are not in the other run's update, and the data differ",
        "the parameters were the same after step 1",
        "at step 2: loss 0.5 | 0.75 (relative 0.33); gradient norm 0.5 in both",
        "at step 4: loss 0.25 in both",
        "metrics: 1 of 4 values differ; the first is train/loss at step 2: 0.5 | 0.75",
        "final parameters: differ",
    ):
        assert part in text, part
    assert list(patched(two)) == ["code.py"]


def test_layers_and_what_came_before(a_run, diff):
    hashes = {layer: f"{layer}1" for layer in LAYERS}
    a_run("one-1")
    a_run("two-2", seed=3, at={1: {"loss": 2.0, "grads": hashes | {"final_norm": "x", "layers.1": "x"}}})
    done = diff("one", "two", "--exit-code")
    assert done.exit_code == 5
    assert "updates: diverge at step 1: gradient" in done.output and "layers: layers.1, final_norm" in done.output
    assert "before it: the seeds differ (0, 3)" in done.output
    assert diff("one", "two").exit_code == 0  # a question, not a check


def test_json_has_it_all(a_run, diff):
    a_run("one-1"), a_run("two-2", at={3: {"loss": float("nan")}})
    done = diff("one", "two", "--json")
    found = json.loads(done.output)
    assert found["diverged"] and not found["same_updates"]
    assert found["divergence"]["step"] == 3 and found["divergence"]["cause"] == "gradient"
    assert found["divergence"]["loss"] == {"a": 1 / 3, "b": "nan", "relative": "inf"}
    assert found["updates"] == [[1, 4], [1, 4]] and found["configuration"] == []


def test_a_run_that_ends_early_is_no_divergence(a_run, diff):
    a_run("one-1", last=2, params=None), a_run("two-2")
    done = diff("one", "two", "--exit-code")
    assert done.exit_code == 0
    assert "bit for bit, up to step 2" in done.output and "run B goes on to step 4" in done.output
    assert "run A left none" in done.output


def test_without_fingerprints_metrics_speak(a_run, diff):
    a_run("one-1"), a_run("two-2", fingerprints=False, at={4: {"loss": 0.3}})
    done = diff("one", "two", "--exit-code")
    assert done.exit_code == 5
    assert "run B has no fingerprints" in done.output and "the first is train/loss at step 4" in done.output


def test_records_of_before_are_read(make_run, tmp_path):
    found = diff_runs(make_run("old-1"), make_run("old-2", params={"seed": 1}, datasets=[]))
    assert found.updates == (None, None) and found.params == (None, None) and not found.diverged
    assert [entry.name for entry in found.data][0] == "data train data/train.jsonl"


def test_a_missing_run_is_a_mistake(a_run, diff):
    a_run("one-1")
    done = diff("one", "nowhere")
    assert done.exit_code != 0 and "no run 'nowhere'" in str(done.exception)


# ---- reinforcement learning ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "what", "cause", "shown"),
    [
        ({"prompt_ids": [[1], [1], [2], [2]]}, "prompts", "data order", ("What is 1 + 1?", "What is 1 + 1?")),
        ({"completion_ids": [[50], [51], [54], [7]]}, "answers", "rollout", ("2", "2")),
        ({"sampler_logps": [[-1.0]] * 4}, "log-probabilities", "rollout", None),
        ({"rewards": {"exact_match": [1.0, 0.0, 0.25, 1.0], "shape": [0.5, 0.5, 0.5, 0.0]}}, "rewards", "reward", None),
        ({"advantages": [[0.0]] * 4}, "advantages", "reward", None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_first_rollout_that_differs(a_run, changes, what, cause, shown):
    """An update of other rows is blamed on what came to be first in the rollout that it was made of."""
    changes = {
        name: [np.asarray(row, "float32") for row in rows] if name != "rewards" else rows for name, rows in changes.items()
    }
    one, two = a_run("one"), a_run("two", at={3: {"batch": "other", "rows": ("x", "y")}})
    for run_dir in (one, two):
        write_trajectories(run_dir, rollout(0))
    write_trajectories(one, rollout(2))
    write_trajectories(two, rollout(2, **changes))
    found = diff_runs(one, two)
    assert (found.rollout.step, found.rollout.what, found.rollout.answers) == (2, what, 4)
    assert (found.divergence.step, found.divergence.cause) == (3, cause)
    assert "sampled after 2 updates" in found.divergence.detail
    assert shown is None or (found.rollout.a, found.rollout.b) == shown
    if what == "rewards":
        assert (found.rollout.differing, found.rollout.prompt) == (1, "What is 2 + 3?")
        assert (found.rollout.a, found.rollout.b) == ("exact_match 0, shape 0.5", "exact_match 0.25, shape 0.5")


def test_a_rollout_that_differs_because_of_an_earlier_update(a_run):
    one, two = a_run("one"), a_run("two", at={2: {"loss": 9.0}, 3: {"batch": "other"}})
    write_trajectories(one, rollout(2))
    write_trajectories(two, rollout(2, completions=["9"] * 4))
    found = diff_runs(one, two)
    assert (found.divergence.step, found.divergence.cause) == (2, "gradient") and found.rollout.step == 2


def test_answers_are_shown_without_steering_the_terminal(a_run, diff):
    for name, text in (("one", "2"), ("two", "\x1b[31m[red]")):
        ids = [np.asarray([len(text)], np.int32)] * 4
        write_trajectories(a_run(name), rollout(0, completions=[text] * 4, completion_ids=ids))
    said = diff("one", "two").output
    assert "rollouts: differ from step 0 on: the same prompts, other answers: 4 of 4 answers, sampled after 0 updates" in said
    assert "A '2'" in said and r"B '\x1b[31m[red]'" in said and "\x1b" not in said
