"""A resume that forgets something is found out, whatever it forgets: seventeen omissions, planted one by one into a real run."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from story_project import PAIRS, Project

from tunix_lab.data.pipeline import TrainBatches
from tunix_lab.lab import build, run_hooks
from tunix_lab.lab.journal_logger import JournalLogger
from tunix_lab.lab.record.journal import Journal
from tunix_lab.lab.run_hooks import RunHooks
from tunix_lab.lab.runner import run
from tunix_lab.lab.same_run import compare, read_outcome
from tunix_lab.sft.checkpoint_manager import CheckpointManager
from tunix_lab.sft.dpo.dpo_trainer import DPOTrainer
from tunix_lab.sft.peft_trainer import PeftTrainer
from tunix_lab.spec import LabSettings, load

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

STEPS, KILLED_AFTER, RESUMED_FROM = 8, 5, 4
OVERRIDES = [
    f"training={{max_steps: {STEPS}, batch_size: 16, micro_batch_size: 8, eval_every: 3, eval_batch_size: 16}}",
    "model.size=pico",
    "checkpoint={every: 2, keep_last: 3}",
    "samples={every: 3, count: 2, max_new_tokens: 3, temperature: 1.0}",
]


class Killed(BaseException):
    """Ends an attempt in the middle, with nothing saved."""


def wrap(patch: pytest.MonkeyPatch, owner: Any, name: str, change: Callable[..., Any]) -> None:
    original = vars(owner)[name]
    patch.setattr(owner, name, lambda *args, **kwargs: change(original, *args, **kwargs))


# ---- what a resume may forget ---------------------------------------------------------------------------------------------


def restored(patch: pytest.MonkeyPatch, change: Callable[..., tuple[Any, Any, dict[str, Any]]]) -> None:
    """Changes what a checkpoint gives back: `change(params, opt_state, record, fresh params, fresh optimizer state)`."""

    def altered(original, self, params, opt_state, variables=None):
        found = original(self, params, opt_state, variables)
        if found is None:
            return None
        step, *content, rest = found
        return step, *change(*content, params, opt_state), rest

    wrap(patch, CheckpointManager, "restore", altered)


def moments(tree: Any, name: str, value: Callable[[jax.Array], jax.Array]) -> Any:
    """The optimizer's state with every leaf under `name` replaced."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: value(leaf) if name in jax.tree_util.keystr(path) else leaf, tree)


def optimizer_reset(patch):
    restored(patch, lambda p, o, r, fresh_p, fresh_o: (p, fresh_o, r))


def second_moment_lost(patch):
    restored(patch, lambda p, o, r, *_: (p, moments(o, ".nu", jnp.zeros_like), r))


def learning_rate_schedule_restarted(patch):
    restored(patch, lambda p, o, r, *_: (p, moments(o, "hyperparams_states", jnp.zeros_like), r))


def parameters_not_restored(patch):
    restored(patch, lambda p, o, r, fresh_p, fresh_o: (fresh_p, o, r))


def one_parameter_not_restored(patch):
    restored(patch, lambda p, o, r, fresh_p, fresh_o: (p | {"final_norm.scale": fresh_p["final_norm.scale"]}, o, r))


def parameters_rounded(patch):
    rounded = lambda a: a.astype(jnp.bfloat16).astype(a.dtype)  # noqa: E731
    restored(patch, lambda p, o, r, *_: ({name: rounded(a) for name, a in p.items()}, o, r))


def one_bit_flipped(patch):
    """Not the lowest of a small number: the next update's rounding would take that back, and nothing would be amiss."""

    def flipped(params):
        scale = params["final_norm.scale"]
        bits = jax.lax.bitcast_convert_type(scale, jnp.uint32)
        return params | {"final_norm.scale": jax.lax.bitcast_convert_type(bits.at[0].set(bits[0] ^ (1 << 12)), scale.dtype)}

    restored(patch, lambda p, o, r, *_: (flipped(p), o, r))


def step_counter_off_by_one(patch):
    restored(patch, lambda p, o, r, *_: (p, o, r | {"train_steps": r["train_steps"] + 1}))


def batch_counter_lost(patch):
    restored(patch, lambda p, o, r, *_: (p, o, r | {"iter_steps": 0}))


def data_from_the_beginning(patch):
    patch.setattr(TrainBatches, "set_state", lambda self, state: None)


def data_skips_a_batch(patch):
    wrap(patch, TrainBatches, "set_state", lambda original, self, state: (original(self, state), next(self))[0])


def data_repeats_a_batch(patch):
    def back(original, self, state):
        original(self, {**state, "next_row": state["next_row"] - 8})

    wrap(patch, TrainBatches, "set_state", back)


def data_in_another_order(patch):
    def other(original, *args, **kwargs):
        return original(*args, **kwargs | {"seed": kwargs["seed"] + 1})

    def unchecked(original, self, state):
        original(self, {**state, "seed": self._identity["seed"]})

    wrap(patch, build, "train_batches", other)
    wrap(patch, TrainBatches, "set_state", unchecked)


def reference_is_what_was_restored(patch):
    """DPO against the policy of the checkpoint instead of the model that training began from."""

    def current(original, self, model, ref_model):
        graph, state = nnx.split(self.model)
        return original(self, model, nnx.merge(graph, jax.tree.map(jnp.copy, state)))  # updates donate the model's own arrays

    wrap(patch, DPOTrainer, "_make_reference", current)


def evaluation_left_out(patch):
    patch.setattr(PeftTrainer, "_run_eval", lambda *args: None)


def first_metrics_not_logged(patch):
    def late(original, self, events, step):
        if step > RESUMED_FROM + 2 or "train/loss" not in events:
            original(self, events, step)

    wrap(patch, JournalLogger, "_write", late)
    # What the killed attempt had logged beyond its checkpoint is what a tracker that starts anew would not have.
    original = vars(Journal)["open"].__func__

    def cut(cls, run_dir, *origin):
        path = Path(run_dir) / "journal/metrics.jsonl"
        lines = [line for line in path.read_bytes().splitlines(keepends=True) if json.loads(line)["step"] <= RESUMED_FROM]
        path.write_bytes(b"".join(lines))
        return original(cls, run_dir, *origin)

    patch.setattr(Journal, "open", classmethod(cut))


def samples_with_other_random_numbers(patch):
    wrap(patch, run_hooks, "Samples", lambda original, *args, **kwargs: original(*args, **kwargs | {"seed": kwargs["seed"] + 1}))


# each with the comparison that must notice it, beside others
OMISSIONS = {
    optimizer_reset: "optimizer and keys",
    second_moment_lost: "parameters",
    learning_rate_schedule_restarted: "metrics",
    parameters_not_restored: "losses",
    one_parameter_not_restored: "gradients",
    parameters_rounded: "gradients",
    one_bit_flipped: "leaves",
    step_counter_off_by_one: "batches",
    batch_counter_lost: "counters",
    data_from_the_beginning: "batches",
    data_skips_a_batch: "batches",
    data_repeats_a_batch: "batches",
    data_in_another_order: "batches",
    reference_is_what_was_restored: "losses",
    evaluation_left_out: "metrics",
    first_metrics_not_logged: "metrics",
    samples_with_other_random_numbers: "samples",
}


@dataclasses.dataclass(frozen=True)
class Attempts:
    """A run that was not killed, and one that was and waits to be resumed, in homes of their own."""

    spec: Path
    whole: Path
    killed: Path

    def run(self, home: Path) -> None:
        run(load(self.spec, OVERRIDES, home), home, LabSettings(sync="off"))


@pytest.fixture(scope="module")
def attempts(tmp_path_factory: pytest.TempPathFactory, data: Path, cache: Path) -> Attempts:
    homes = [tmp_path_factory.mktemp(name) for name in ("whole", "killed")]
    project = Project(homes[0], cache)
    spec = project.write_spec("omissions", algorithm="{kind: dpo, max_prompt_length: 40, max_response_length: 24}", data=PAIRS)
    # 40 pairs are two and a half updates: the kill comes right after an epoch's end inside an update.
    text = spec.read_text().replace("train: data/arithmetic/preference/train.jsonl", "train: few/train.jsonl")
    spec.write_text(text)
    lines = (data / "arithmetic/preference/train.jsonl").read_text().splitlines(keepends=True)
    for home in homes:
        (home / "data").symlink_to(data)
        (home / "few").mkdir()
        (home / "few/train.jsonl").write_text("".join(lines[:40]))
    made = Attempts(spec, *homes)
    made.run(made.whole)
    with pytest.MonkeyPatch.context() as patch:

        def kill(original, self, trainer):
            original(self, trainer)
            if trainer.train_steps == KILLED_AFTER:
                raise Killed

        wrap(patch, RunHooks, "on_update", kill)
        with pytest.raises(Killed):
            made.run(made.killed)
    return made


def differences(attempts: Attempts, home: Path) -> dict[str, tuple[str, ...]]:
    """Resumes the killed run in `home`, a copy, and compares."""
    shutil.copytree(attempts.killed, home, symlinks=True)
    attempts.run(home)
    (whole,), (resumed,) = ((folder / "runs").iterdir() for folder in (attempts.whole, home))
    checks = compare(read_outcome(whole, attempts.whole), read_outcome(resumed, home))
    assert [check.what for check in checks if not check.compared] == ["trajectories"]  # this is no reinforcement learning
    return {check.what: check.first for check in checks if check.different}


def test_nothing_is_forgotten(attempts: Attempts, tmp_path: Path) -> None:
    assert differences(attempts, tmp_path / "home") == {}


@pytest.mark.parametrize("omission", OMISSIONS, ids=lambda omission: omission.__name__)
def test_planted_omissions_are_found(attempts: Attempts, tmp_path: Path, monkeypatch, omission) -> None:
    omission(monkeypatch)
    found = differences(attempts, tmp_path / "home")
    assert OMISSIONS[omission] in found, found
