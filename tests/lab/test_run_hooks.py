"""What a run does about losses that are no numbers, and what it keeps of them."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from tunix_lab.errors import TrainingFailed
from tunix_lab.lab.record.fingerprints import read_fingerprints
from tunix_lab.lab.record.journal import Journal, read_events
from tunix_lab.lab.run_hooks import BATCHES_KEPT, RunHooks
from tunix_lab.sft.checkpoint_manager import CheckpointManager
from tunix_lab.sft.fingerprint import Fingerprint
from tunix_lab.spec import load

SPEC = """
name: hooks
model: {family: gemma3, size: pico, init: {kind: random}}
tokenizer: {path: data/tokenizer}
algorithm: {kind: sft}
data: {kind: chat, train: a.jsonl, validation: b.jsonl, max_length: 8}
optimizer: {learning_rate: 1.0e-3}
training: {max_steps: 50, batch_size: 2}
tracking: {experiment: hooks}
"""


@dataclasses.dataclass
class Trainer:
    """Only what the hook looks at."""

    told_batch: Any = dataclasses.field(default_factory=lambda: {"input_tokens": jnp.arange(6).reshape(1, 2, 3)})
    told_metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    checkpoint_manager: CheckpointManager = dataclasses.field(default_factory=CheckpointManager)


def fingerprint(step: int, loss: float = math.nan, grad_norm: float = 1.0) -> Fingerprint:
    return Fingerprint(step, "b", ("r",), loss, grad_norm, {"w": "g"}, {"w": "p"}, "o")


@pytest.fixture
def hooks(tmp_path):
    (tmp_path / "spec.yaml").write_text(SPEC)
    with Journal.open(tmp_path / "runs/hooks") as journal:

        def make(policy: str) -> RunHooks:
            spec = load(tmp_path / "spec.yaml", [f"training.nonfinite={policy}"], tmp_path).spec
            return RunHooks(spec, tmp_path, journal, None, None, [], None)

        yield make


@pytest.mark.parametrize("bad", [{"loss": math.nan}, {"loss": math.inf}, {"loss": 1.0, "grad_norm": math.nan}])
def test_stop_names_the_step_and_keeps_its_batch(hooks, tmp_path, bad):
    with pytest.raises(TrainingFailed, match="at step 7: stopped. Its batch is in .*step-000007.npz.*training.nonfinite"):
        hooks("stop").on_fingerprint(Trainer(), fingerprint(7, **bad))
    (event,) = (event for event in read_events(tmp_path / "runs/hooks") if event["kind"] == "nonfinite")
    with np.load(tmp_path / "runs/hooks" / event["batch"]) as batch:
        np.testing.assert_array_equal(batch["input_tokens"], np.arange(6).reshape(1, 2, 3))
    assert list(read_fingerprints(tmp_path / "runs/hooks")) == [7]  # the one that tells of it is kept too


def test_a_critic_whose_loss_is_none_stops_too(hooks):
    """Its parameters would else be saved, and spoil the actor's next update alone."""
    trainer = Trainer(told_metrics={"loss": 0.5, "value_loss": math.inf, "critic_grad_norm": 2.0})
    with pytest.raises(
        TrainingFailed, match="loss 0.5, gradient norm 1.0, the critic's loss inf, its gradient norm 2.0 at step 7"
    ):
        hooks("stop").on_fingerprint(trainer, fingerprint(7, loss=0.5))


@pytest.mark.parametrize(("policy", "done"), [("skip", "skipped"), ("continue", "applied all the same")])
def test_a_run_that_goes_on_keeps_the_first_batches(hooks, tmp_path, capsys, policy, done):
    made = hooks(policy)
    for step in range(1, BATCHES_KEPT + 6):
        made.on_fingerprint(Trainer(), fingerprint(step))
    said = capsys.readouterr().err
    assert said.count(done) == BATCHES_KEPT and said.count("further ones") == 1
    assert len(list((tmp_path / "runs/hooks/faults").iterdir())) == BATCHES_KEPT
    assert len(read_fingerprints(tmp_path / "runs/hooks")) == BATCHES_KEPT + 5


def test_a_finite_update_is_only_noted(hooks, tmp_path):
    hooks("stop").on_fingerprint(Trainer(), fingerprint(1, loss=0.5))
    assert not (tmp_path / "runs/hooks/faults").exists() and list(read_fingerprints(tmp_path / "runs/hooks")) == [1]
