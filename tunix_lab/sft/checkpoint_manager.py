"""Checkpoints of a run: written atomically by Orbax, believed only while they are, bit for bit, what was written."""

import hashlib
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from tunix_lab.errors import UserError
from tunix_lab.sft.fingerprinting import tree_hash
from tunix_lab.sft.retention import JUDGED, Retention
from tunix_lab.sft.train_state import Params, digest

logger = logging.getLogger(__name__)

SPARE_BYTES = 16 << 20
"""Left free on the disk beyond what a checkpoint needs: the journal goes on when checkpoints no longer fit."""


class CheckpointManager:
    """Saves and restores parameters, optimizer state and a JSON record under `<root>/<step>/`.

    Without a root directory it saves nothing and finds nothing. A disk that is full, or fails, stops no training: the checkpoint
    is left out with a warning, those that are there stay, and the next one that is due is tried again.
    """

    def __init__(
        self,
        root_directory: str | Path | None = None,
        options: ocp.CheckpointManagerOptions | None = None,
        *,
        every: int | None = None,
        identity: str | None = None,
        retention: Retention | None = None,
        on_saved: Callable[[int, Path, str], None] | None = None,
        on_failed: Callable[[int, str], None] | None = None,
    ):
        """Opens the folder.

        Args:
          root_directory: where checkpoints live; None for none.
          options: Orbax's cadence and retention; None keeps three, or what `retention` says.
          every: updates between checkpoints, in place of Orbax's cadence (which also saves the first update).
          identity: hash of all that must be the same to continue (spec, data, tokenizer, base weights); kept in every checkpoint.
          retention: which checkpoints stay, in place of Orbax's own options.
          on_saved: called with step, folder and parameter digest once a checkpoint is complete on disk, and when it is restored.
          on_failed: called with step and reason when a checkpoint could not be written.
        """
        self._manager = None
        self._every = every
        self._identity = identity
        self._on_saved = on_saved
        self._on_failed = on_failed
        self._unreported: tuple[int, str] | None = None
        self._unusable: set[int] = set()
        self._retention = retention
        self._judged: tuple[int, dict[str, float]] = (-1, {})
        self._began = 0.0
        self.failure: str | None = None
        """Why the last save failed; None if it did not."""
        self.longest_save_s: float | None = None
        """Seconds from the beginning of a save to its being known to be complete, the longest so far; None before the first."""
        if root_directory is not None:
            if retention is not None:
                options = ocp.CheckpointManagerOptions(preservation_policy=retention, cleanup_tmp_directories=True)
            options = options or ocp.CheckpointManagerOptions(max_to_keep=3)
            self._manager = ocp.CheckpointManager(Path(root_directory).absolute(), options=options)
            if retention is not None:
                retention.read(Path(self._manager.directory), self._manager.all_steps())

    def latest_step(self) -> int | None:
        """The newest complete step on disk, those that `restore` found unusable left out."""
        steps = set() if self._manager is None else set(self._manager.all_steps())
        return max(steps - self._unusable, default=None)

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is wanted after update `step`."""
        if self._manager is None:
            return False
        return self._manager.should_save(step) if self._every is None else step % self._every == 0

    def judge(self, step: int, metrics: Mapping[str, float]) -> None:
        """Tells how good the parameters of `step` are: their checkpoint keeps it, for a retention that keeps the best."""
        known = self._judged[1] if self._judged[0] == step else {}
        self._judged = (step, {**known, **metrics})

    def save(self, step: int, params: Params, opt_state: Any, record: dict[str, Any], variables: Params | None = None) -> bool:
        """Starts writing a checkpoint, in the background; the arrays may be overwritten once this returns.

        Args:
          step: optimizer updates made.
          params: the trained parameters.
          opt_state: the optimizer's state.
          record: JSON: counters, the data iterator's state, hashes, the user's metadata.
          variables: what else training changes, `train_state.plain`; None is nothing.

        Returns:
          Whether writing began (False if this step already has a checkpoint, there is no folder, or the disk has no room).
        """
        if self._manager is None or step == self.latest_step():
            return False
        self._report()
        self._began = time.monotonic()
        if step in self._unusable:  # training has come again to where a damaged checkpoint stands
            self._manager.delete(step)
            self._unusable.remove(step)
        trees = {"params": params, "opt_state": opt_state} | ({"variables": variables} if variables else {})  # none are empty
        missing = self._missing_bytes(trees)
        if missing:
            self._fail(step, f"the disk lacks {missing / 1e6:,.1f} MB for it")
            return False
        record = {**record, "identity": self._identity, "params_digest": _digest(params), JUDGED: self._judgement(step)}
        record["hashes"] = {name: tree_hash(tree) for name, tree in trees.items()}
        if self._retention is not None:
            self._retention.judge(step, record[JUDGED])
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        items["record"] = ocp.args.JsonSave({**record, "sha256": _sha256(record)})
        try:
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        except (OSError, ValueError) as error:
            self._fail(step, _of_the_disk(error))
            return False
        self._unreported = (step, record["params_digest"])
        return True

    def _judgement(self, step: int) -> dict[str, float]:
        """The metrics of `step`, those that are numbers."""
        at, metrics = self._judged
        return {name: value for name, value in metrics.items() if math.isfinite(value)} if at == step else {}

    def restore(
        self, params: Params, opt_state: Any, variables: Params | None = None
    ) -> tuple[int, Params, Any, dict[str, Any], Params] | None:
        """The newest checkpoint that verifies, placed like the arrays given: its step and what `save` was given; None if none is.

        A checkpoint that cannot be read, or is not what was written, is named in a warning and skipped.

        Raises:
          UserError: if checkpoints exist and none can be used.
        """
        steps = [] if self._manager is None else sorted(self._manager.all_steps(), reverse=True)
        like = jax.tree.map(ocp.utils.to_shape_dtype_struct, (params, opt_state, variables or {}))
        for step in steps:
            try:
                params, opt_state, record, variables = self._read(step, *like)
            except (ValueError, KeyError, TypeError, OSError) as error:
                self._unusable.add(step)
                logger.warning("checkpoint %s of step %d is unusable and skipped: %s", self._manager.directory, step, error)
                continue
            self._tell(step, record["params_digest"])  # whoever wrote it may have been killed before it could
            return step, params, opt_state, record, variables
        if steps:
            raise UserError(
                f"{self._manager.directory}: none of the checkpoints {sorted(steps)} can be restored into this model; "
                "delete the folder or choose another to start anew"
            )
        return None

    def verify(self, step: int, params: Params, opt_state: Any, variables: Params | None = None) -> bool:
        """Reads the checkpoint of `step` back, into the host's memory, and says whether it is what was written."""
        like = jax.tree.map(lambda array: np.empty(array.shape, array.dtype), (params, opt_state, variables or {}))
        try:
            self._read(step, *like)
        except (ValueError, KeyError, TypeError, OSError) as error:
            logger.warning("checkpoint %s of step %d does not verify: %s", self._manager.directory, step, error)
            return False
        return True

    def _read(self, step: int, params: Any, opt_state: Any, variables: Any) -> tuple[Params, Any, dict[str, Any], Params]:
        """The checkpoint of `step`, placed like the arrays given. Raises ValueError for one that is not what was written."""
        wanted = {"params": params, "opt_state": opt_state} | ({"variables": variables} if variables else {})
        items = {name: ocp.args.StandardRestore(tree) for name, tree in wanted.items()}
        restored = self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore(), **items))
        record = dict(restored.record)
        if record.pop("sha256") != _sha256(record):
            raise ValueError("its record is not what was written")
        written, read = record["params_digest"], _digest(restored.params)
        if written != read:
            raise ValueError(f"its parameters have digest {read[:12]}, written was {written[:12]}")
        for name, written in record["hashes"].items():
            if name not in wanted or tree_hash(restored[name]) != written:
                raise ValueError(f"its {name} are not what was written")
        return restored.params, restored.opt_state, record, restored["variables"] if variables else {}

    def poll(self) -> None:
        """Reports a checkpoint that has become complete; never waits."""
        if self._unreported is not None and not self._manager.is_saving_in_progress():
            self._report()

    def wait(self) -> None:
        """Returns once everything is on disk."""
        if self._manager is not None:
            self._report()

    def close(self) -> None:
        """Finishes writing and lets go of the folder."""
        if self._manager is not None:
            self.wait()
            self._manager.close()

    def _report(self) -> None:
        """Waits for the checkpoint that is being written, and tells of its end."""
        if self._unreported is None:
            return
        (step, params_digest), self._unreported = self._unreported, None
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            self._fail(step, _of_the_disk(error))
            return
        self.failure = None
        self.longest_save_s = max(self.longest_save_s or 0.0, time.monotonic() - self._began)
        self._tell(step, params_digest)

    def _tell(self, step: int, params_digest: str) -> None:
        if self._on_saved is not None:
            self._on_saved(step, Path(self._manager.directory) / str(step), params_digest)

    def _fail(self, step: int, reason: str) -> None:
        """Leaves out the checkpoint of `step` and takes away what was written of it."""
        self.failure = f"no checkpoint of step {step} in {self._manager.directory}: {reason}"
        logger.warning("%s; training goes on, the checkpoints that are there stay", self.failure)
        for part in Path(self._manager.directory).glob(f"{step}.orbax-checkpoint-tmp*"):
            shutil.rmtree(part, ignore_errors=True)
        if self._on_failed is not None:
            self._on_failed(step, reason)

    def _missing_bytes(self, trees: Mapping[str, Any]) -> int:
        """How many bytes the disk lacks for these arrays; 0 if they fit."""
        needed = sum(array.nbytes for array in jax.tree.leaves(trees)) + SPARE_BYTES
        return max(0, needed - shutil.disk_usage(self._manager.directory).free)


def _of_the_disk(error: Exception) -> str:
    """The reason in an error of a write; an error that is not of the disk is raised again."""
    text = str(error)
    if isinstance(error, OSError):
        return error.strerror or text
    if "os_error_code" in text or "RESOURCE_EXHAUSTED" in text:  # how TensorStore says it
        return text.rpartition(": ")[2].partition(" [")[0]
    raise error


def _digest(params: Params) -> str:
    """The digest of the parameters; of several processes none holds them all, so there only names and shapes count."""
    if all(not isinstance(array, jax.Array) or array.is_fully_addressable for array in params.values()):
        return digest(params)
    return digest({name: jax.numpy.zeros(()) for name in params})


def _sha256(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
