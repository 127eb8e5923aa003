"""What a run does between updates: it keeps fingerprints, samples, and stops where it must."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from tunix_lab.data.tokenizer import Tokenizer
from tunix_lab.errors import TrainingFailed
from tunix_lab.lab.prompts import Prompt
from tunix_lab.lab.record.journal import Journal
from tunix_lab.lab.samples import Samples, load_scorer
from tunix_lab.lab.stopping import Stopping
from tunix_lab.sft.fingerprint import Fingerprint
from tunix_lab.sft.hooks import TrainingHooks
from tunix_lab.sft.peft_trainer import PeftTrainer
from tunix_lab.spec import ExperimentSpec

_OF_CRITICS = {"value_loss": "the critic's loss", "critic_grad_norm": "its gradient norm"}
BATCHES_KEPT = 10
"""Batches whose loss or gradient is no number that are kept, and told, by one attempt."""


class RunHooks(TrainingHooks):
    """Samples when they are due, and an end to training on numbers that are none."""

    def __init__(
        self,
        spec: ExperimentSpec,
        home: Path,
        journal: Journal,
        model: nnx.Module,
        tokenizer: Tokenizer,
        prompts: Sequence[Prompt],
        stopping: Stopping,
    ):
        self._journal = journal
        self._section = spec.samples
        self._nonfinite = spec.training.nonfinite
        self._sampled: int | None = None
        self._faults = 0
        self._stopping = stopping
        if spec.samples is not None:
            self._samples = Samples(
                model,
                tokenizer,
                prompts,
                max_new_tokens=spec.samples.max_new_tokens,
                temperature=spec.samples.temperature,
                seed=spec.seed,
                scorer=load_scorer(spec.samples.scorer, home),
            )

    def on_train_begin(self, trainer: PeftTrainer) -> None:
        self._stopping.begin()
        if trainer.train_steps == 0:
            self._sample(trainer)

    def on_update(self, trainer: PeftTrainer) -> None:
        self._stopping.after_update(trainer)
        if self._section is not None and trainer.train_steps % self._section.every == 0:
            self._sample(trainer)

    def on_fingerprint(self, trainer: PeftTrainer, fingerprint: Fingerprint) -> None:
        self._journal.fingerprint(fingerprint)
        told = {"loss": fingerprint.loss, "gradient norm": fingerprint.grad_norm}
        told |= {shown: trainer.told_metrics[name] for name, shown in _OF_CRITICS.items() if name in trainer.told_metrics}
        if all(map(math.isfinite, told.values())):
            return
        path = self._journal.run_dir / "faults" / f"step-{fingerprint.step:06d}.npz"
        if self._faults < BATCHES_KEPT:  # of a run that goes on, every batch may be such a one
            save_batch(path, trainer.told_batch)
            self._journal.event("nonfinite", step=fingerprint.step, batch=path.relative_to(self._journal.run_dir).as_posix())
        self._faults += 1
        what = f"{', '.join(f'{name} {value}' for name, value in told.items())} at step {fingerprint.step}"
        if self._nonfinite == "stop":
            raise TrainingFailed(
                f"{what}: stopped. Its batch is in {path}; the newest checkpoint is of step "
                f"{trainer.checkpoint_manager.latest_step()}. Lower optimizer.learning_rate or optimizer.clip_norm, mend the "
                "rows, or set training.nonfinite to skip"
            )
        done = "skipped" if self._nonfinite == "skip" else "applied all the same"
        if self._faults <= BATCHES_KEPT:
            print(f"{what}: {done}; its batch is in {path}", file=sys.stderr, flush=True)
        if self._faults == BATCHES_KEPT:
            print("further ones are counted in the metrics alone", file=sys.stderr, flush=True)

    def on_train_end(self, trainer: PeftTrainer) -> None:
        if not trainer.stopped_early:
            self._sample(trainer)

    def _sample(self, trainer: PeftTrainer) -> None:
        step = trainer.train_steps
        if self._section is None or self._sampled == step:
            return
        self._sampled = step
        rows, score = self._samples.generate(nnx.state(trainer.model))
        self._journal.samples(step, rows)
        if score is not None:
            scored = {f"eval/{self._section.scorer.rpartition(':')[2]}": score}
            self._journal.metrics(step, scored, checkpoint=step)
            trainer.checkpoint_manager.judge(step, scored)


def save_batch(path: Path, micro_batches: Any) -> None:
    """Keeps what an update read, for `numpy.load`: its arrays [n_micro, rows, …] by name."""
    leaves = jax.tree_util.tree_flatten_with_path(micro_batches)[0]
    path.parent.mkdir(exist_ok=True)
    np.savez(path, **{jax.tree_util.keystr(place, simple=True, separator="."): np.asarray(leaf) for place, leaf in leaves})
