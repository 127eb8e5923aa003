"""Checkpoints of a run: written atomically by Orbax, believed only while they have the digest they were written with."""

import errno
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from tunix_lab.errors import UserError, writing
from tunix_lab.sft.train_state import Params, digest

logger = logging.getLogger(__name__)


class CheckpointManager:
    """Saves and restores parameters, optimizer state and a JSON record under `<root>/<step>/`.

    Without a root directory it saves nothing and finds nothing.
    """

    def __init__(
        self,
        root_directory: str | Path | None = None,
        options: ocp.CheckpointManagerOptions | None = None,
        *,
        every: int | None = None,
        identity: str | None = None,
        on_saved: Callable[[int, Path, str], None] | None = None,
    ):
        """Opens the folder.

        Args:
          root_directory: where checkpoints live; None for none.
          options: Orbax's cadence and retention; None keeps three.
          every: updates between checkpoints, in place of Orbax's cadence (which also saves the first update).
          identity: hash of all that must be the same to continue (spec, data, tokenizer, base weights); kept in every checkpoint.
          on_saved: called with step, folder and parameter digest once a checkpoint is complete on disk.
        """
        self._manager = None
        self._every = every
        self._identity = identity
        self._on_saved = on_saved
        self._unreported: tuple[int, str] | None = None
        self._unusable: set[int] = set()
        if root_directory is not None:
            options = options or ocp.CheckpointManagerOptions(max_to_keep=3)
            self._manager = ocp.CheckpointManager(Path(root_directory).absolute(), options=options)

    def latest_step(self) -> int | None:
        """The newest complete step on disk, those that `restore` found unusable left out."""
        steps = set() if self._manager is None else set(self._manager.all_steps())
        return max(steps - self._unusable, default=None)

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is wanted after update `step`."""
        if self._manager is None:
            return False
        return self._manager.should_save(step) if self._every is None else step % self._every == 0

    def save(self, step: int, params: Params, opt_state: Any, record: dict[str, Any], variables: Params | None = None) -> bool:
        """Starts writing a checkpoint, in the background; the arrays may be overwritten once this returns.

        Args:
          step: optimizer updates made.
          params: the trained parameters.
          opt_state: the optimizer's state.
          record: JSON: counters, the data iterator's state, hashes, the user's metadata.
          variables: what else training changes, `train_state.plain`; None is nothing.

        Returns:
          Whether a checkpoint was written (False if this step already has one, or there is no folder).
        """
        if self._manager is None or step == self.latest_step():
            return False
        self._report()
        if step in self._unusable:  # training has come again to where a damaged checkpoint stands
            self._manager.delete(step)
            self._unusable.remove(step)
        params_digest = _digest(params)
        items = {
            "params": ocp.args.StandardSave(params),
            "opt_state": ocp.args.StandardSave(opt_state),
            "record": ocp.args.JsonSave({**record, "identity": self._identity, "params_digest": params_digest}),
        }
        if variables:  # Orbax writes no empty trees
            items["variables"] = ocp.args.StandardSave(variables)
        with writing(self._manager.directory):
            self._require_room(params, opt_state, variables)
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        self._unreported = (step, params_digest)
        return True

    def restore(
        self, params: Params, opt_state: Any, variables: Params | None = None
    ) -> tuple[int, Params, Any, dict[str, Any], Params] | None:
        """The newest checkpoint that verifies, placed like the arrays given: its step and what `save` was given; None if none is.

        A checkpoint that cannot be read, or whose parameters no longer have their digest, is named in a warning and skipped.

        Raises:
          UserError: if checkpoints exist and none can be used.
        """
        steps = [] if self._manager is None else sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                return step, *self._restore_step(step, params, opt_state, variables or {})
            except (ValueError, KeyError, OSError) as error:
                self._unusable.add(step)
                logger.warning("checkpoint %s of step %d is unusable and skipped: %s", self._manager.directory, step, error)
        if steps:
            raise UserError(
                f"{self._manager.directory}: none of the checkpoints {sorted(steps)} can be restored into this model; "
                "delete the folder or choose another to start anew"
            )
        return None

    def _restore_step(
        self, step: int, params: Params, opt_state: Any, variables: Params
    ) -> tuple[Params, Any, dict[str, Any], Params]:
        wanted = {"params": params, "opt_state": opt_state} | ({"variables": variables} if variables else {})
        items = {
            name: ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)) for name, tree in wanted.items()
        }
        restored = self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore(), **items))
        written, read = restored.record["params_digest"], _digest(restored.params)
        if written != read:
            raise ValueError(f"its parameters have digest {read[:12]}, written was {written[:12]}")
        return restored.params, restored.opt_state, restored.record, restored["variables"] if variables else {}

    def wait(self) -> None:
        """Returns once everything is on disk."""
        if self._manager is not None:
            with writing(self._manager.directory):
                self._manager.wait_until_finished()
            self._report()

    def close(self) -> None:
        """Finishes writing and lets go of the folder."""
        if self._manager is not None:
            self.wait()
            self._manager.close()

    def _require_room(self, *trees: Any) -> None:
        """Raises OSError where the disk is too full: Orbax would find out half-way, in threads of its own."""
        free = shutil.disk_usage(self._manager.directory).free
        if free < sum(array.nbytes for array in jax.tree.leaves(trees) if isinstance(array, jax.Array)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _report(self) -> None:
        if self._unreported is None:
            return
        step, params_digest = self._unreported
        with writing(self._manager.directory):
            self._manager.wait_until_finished()
        self._unreported = None
        if self._on_saved is not None:
            self._on_saved(step, Path(self._manager.directory) / str(step), params_digest)


def _digest(params: Params) -> str:
    """The digest of the parameters; of several processes none holds them all, so there only names and shapes count."""
    if all(array.is_fully_addressable for array in params.values()):
        return digest(params)
    return digest({name: jax.numpy.zeros(()) for name in params})
