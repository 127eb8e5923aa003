"""What a training step reads and writes, as plain arrays."""

import dataclasses
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Trained parameters by path, "layers.0.attn.q_einsum.w" -> array.
Params = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state of training, all of it on the device.

    Attributes:
      params: the trained parameters (only the adapters of a LoRA model).
      variables: what else changes with every update: counters of random numbers, statistics.
      opt_state: optax's state for `params`.
    """

    params: Params
    variables: nnx.State
    opt_state: Any


@dataclasses.dataclass(frozen=True)
class ModelParts:
    """How to put a model together again from `TrainState`.

    Attributes:
      graph: the model without its variables.
      template: the trained variables, abstract: their types and metadata.
    """

    graph: nnx.GraphDef
    template: nnx.State

    def merge(self, params: Params, variables: nnx.State, frozen: nnx.State) -> nnx.Module:
        """The model with these arrays; what it changes while it runs is its own."""
        return nnx.merge(self.graph, self.to_state(params), snapshot(variables), snapshot(frozen))

    def to_state(self, params: Params) -> nnx.State:
        """`params` in the model's own structure and dtypes."""

        def own(variable: nnx.Variable, value: jax.Array) -> nnx.Variable:
            return variable.replace(value.astype(variable.get_value().dtype))

        flat = [(path, own(variable, params[dotted(path)])) for path, variable in nnx.to_flat_state(self.template)]
        return nnx.from_flat_state(flat)


def dotted(path: tuple[Any, ...]) -> str:
    """("layers", 0, "w") -> "layers.0.w"."""
    return ".".join(map(str, path))


def flat_params(state: nnx.State) -> Params:
    """The variables of a model state by dotted path, sorted."""
    return dict(sorted((dotted(path), variable.get_value()) for path, variable in nnx.to_flat_state(state)))


def is_lora_model(model: nnx.Module) -> bool:
    """Whether any variable of the model is a LoRA parameter."""
    return any(isinstance(variable, nnx.LoRAParam) for _, variable in nnx.to_flat_state(nnx.state(model)))


def split_model(model: nnx.Module) -> tuple[ModelParts, Params, nnx.State, nnx.State]:
    """Takes a model apart.

    Returns:
      How to put it together; the trained parameters (adapters if it has any, else all); the variables that are no parameters;
      and the frozen parameters, which no update touches: another model may hold them too.
    """
    trained = nnx.LoRAParam if is_lora_model(model) else nnx.Param
    graph, template, variables, frozen = nnx.split(model, trained, is_changing, ...)
    template = snapshot(template)
    return ModelParts(graph, jax.eval_shape(lambda: template)), flat_params(template), snapshot(variables), snapshot(frozen)


is_changing = nnx.filterlib.Not(nnx.Param)
"""Filter of the variables that a forward pass may change."""


def plain(variables: nnx.State) -> Params:
    """The arrays of `variables` by dotted path, random keys as plain bits: what a checkpoint holds of them."""
    return {name: _key_bits(array) for name, array in flat_params(variables).items()}


def with_plain(variables: nnx.State, values: Params) -> nnx.State:
    """`variables` with the values that `plain` gave."""

    def put(variable: nnx.Variable, value: jax.Array) -> nnx.Variable:
        old = variable.get_value()
        return variable.replace(jax.random.wrap_key_data(value, impl=jax.random.key_impl(old)) if _is_key(old) else value)

    return nnx.from_flat_state([(path, put(variable, values[dotted(path)])) for path, variable in nnx.to_flat_state(variables)])


def _is_key(array: jax.Array) -> bool:
    return jnp.issubdtype(array.dtype, jax.dtypes.prng_key)


def _key_bits(array: jax.Array) -> jax.Array:
    return jax.random.key_data(array) if _is_key(array) else array


def snapshot(state: nnx.State) -> nnx.State:
    """The same arrays in variables of their own: `nnx.split` hands out the model's, which a later `nnx.update` would change."""
    return jax.tree.map(lambda array: array, state)


def masters(params: Params, dtype: str | None) -> Params:
    """Floating-point parameters of lower precision than `dtype` in that dtype; the others as they are."""

    def is_lower(array: jax.Array) -> bool:
        return jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize < jnp.dtype(dtype).itemsize

    return params if dtype is None else {name: a.astype(dtype) if is_lower(a) else a for name, a in params.items()}


def mesh_of(params: Params) -> Mesh | None:
    """The mesh that the parameters live on; None if they live on one device."""
    for array in params.values():
        if isinstance(array.sharding, NamedSharding):
            return array.sharding.mesh
    return None


def init_opt_state(optimizer: optax.GradientTransformation, params: Params) -> Any:
    """The optimizer's state; moments lie where their parameters lie, everything else on every device."""
    abstract = jax.eval_shape(optimizer.init, params)
    mesh = mesh_of(params)
    if mesh is None:
        return jax.jit(optimizer.init)(params)
    shardings = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        abstract,
        {name: array.sharding for name, array in params.items()},
        transform_non_params=lambda _: NamedSharding(mesh, PartitionSpec()),
    )
    return jax.jit(optimizer.init, out_shardings=shardings)(params)


def digest(arrays: dict[str, Any]) -> str:
    """sha256 over name, dtype, shape and bytes of every array, in order of the names; the identity of a set of parameters."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        sha.update(f"{name} {array.dtype} {array.shape}\n".encode())
        sha.update(np.ascontiguousarray(array).view(np.uint8).data if array.size else b"")
    return sha.hexdigest()


def copy_shared(params: Params, others: nnx.State) -> Params:
    """Copies those parameters whose memory also belongs to `others`, so that a donated update cannot take it away from them."""
    taken = addresses(others)
    return {name: jnp.copy(array) if _address(array) in taken else array for name, array in params.items()}


def addresses(tree: Any) -> set[int]:
    """Where the arrays of a tree lie in memory (their first parts, of those that are split)."""
    return {_address(leaf) for leaf in jax.tree.leaves(tree)}


def _address(array: jax.Array) -> int:
    return array.addressable_shards[0].data.unsafe_buffer_pointer()
