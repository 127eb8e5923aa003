"""Which model lies where; arrays that models share are moved once, and stay shared."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from tunix_lab.models.sharding import auto_mesh, param_sharding
from tunix_lab.rl.config import ClusterConfig, Role


class Placement:
    """Puts models on the meshes of their roles."""

    def __init__(self, config: ClusterConfig):
        self._meshes = {Role(role): auto_mesh(mesh) for role, mesh in config.role_to_mesh.items()}
        rules: Mapping[Any, Any] = config.role_to_logical_axis_rule or {}
        self._rules = {Role(role): dict(given) for role, given in rules.items()}
        if Role.ROLLOUT in self._rules:
            raise ValueError(
                "role_to_logical_axis_rule: a rollout is split as `models.sharding` says; give it a mesh of its own, or no rules"
            )
        self._moved: dict[tuple[int, Any], tuple[jax.Array, jax.Array]] = {}

    def mesh(self, role: Role) -> Mesh | None:
        """The mesh of a role: its own, or the actor's; None where none is named, and models stay where they are."""
        return self._meshes.get(role, self._meshes.get(Role.ACTOR))

    def is_apart(self, role: Role) -> bool:
        """Whether a role lives on other devices than the actor, or split otherwise."""
        return self.mesh(role) != self.mesh(Role.ACTOR)

    def placed(self, role: Role, model: nnx.Module) -> nnx.Module:
        """The model on the mesh of its role, in place."""
        mesh = self.mesh(role)
        if mesh is None:
            return model
        state = nnx.state(model)
        flat = [(path, self._place(variable, mesh, role)) for path, variable in nnx.to_flat_state(state)]
        nnx.update(model, nnx.from_flat_state(flat))
        return model

    def _place(self, variable: nnx.Variable, mesh: Mesh, role: Role) -> nnx.Variable:
        array = variable.get_value()
        sharding = param_sharding(variable, mesh, self._rules.get(role))
        key = id(array), sharding
        if key not in self._moved:
            self._moved[key] = array, jax.device_put(array, sharding)  # the array is kept, so that its id stays its own
        return variable.replace(self._moved[key][1])
