"""The frozen models: reference and reward model."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx
from jax.sharding import Mesh

from tunix_lab.rl.config import Role
from tunix_lab.rl.experience import Batch
from tunix_lab.rl.forward import Forward, completion_logps, final_scores
from tunix_lab.rl.offload import parked, unparked
from tunix_lab.sft.train_state import addresses, snapshot


class InferenceWorker:
    """Runs the models that are not trained.

    With `offload` their arrays wait in the host's memory between calls.
    """

    def __init__(
        self,
        models: Mapping[Role, nnx.Module],
        meshes: Mapping[Role, Mesh | None],
        temperature: float,
        *,
        offload: bool = False,
        held_elsewhere: Any = (),
    ):
        """Prepares the passes.

        Args:
          models: those of `Role.REFERENCE` and `Role.REWARD` that there are.
          meshes: where they lie.
          temperature: of the log-probabilities.
          offload: see above.
          held_elsewhere: arrays that stay on the devices anyway; they are not moved.
        """
        functions = {
            Role.REFERENCE: lambda model, batch: completion_logps(model, batch, temperature),
            Role.REWARD: final_scores,
        }
        self._forward = {role: Forward(model, functions[role], meshes[role]) for role, model in models.items()}
        self._states: dict[Role, Any] = {role: snapshot(nnx.split(model)[1]) for role, model in models.items()}
        self._offload = offload
        if offload:
            kept = addresses(held_elsewhere)
            self._states = {role: parked(state, kept) for role, state in self._states.items()}

    def has(self, role: Role) -> bool:
        """Whether there is a model of this role."""
        return role in self._forward

    def state(self, role: Role) -> nnx.State:
        """The arrays of a model."""
        return self._states[role]

    def get_ref_per_token_logps(self, batch: Batch, rows_at_once: int | None) -> np.ndarray:
        """The reference's log-probabilities of the answers' tokens, float32 [rows, tokens], nats."""
        return self._run(Role.REFERENCE, batch, rows_at_once)

    def get_rewards(self, batch: Batch, rows_at_once: int | None) -> np.ndarray:
        """The reward model's score of each answer, float32 [rows]."""
        return self._run(Role.REWARD, batch, rows_at_once)

    def _run(self, role: Role, batch: Batch, rows_at_once: int | None) -> np.ndarray:
        if role not in self._forward:
            raise ValueError(f"the cluster has no {role} model: RLCluster(…, {role}=…)")
        state = unparked(self._states[role]) if self._offload else self._states[role]
        return np.asarray(self._forward[role](state, batch, rows_at_once), np.float32)
