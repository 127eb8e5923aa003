"""The one sharding table: which mesh axis splits which logical axis of parameters, optimizer state and batches."""

import math
from collections.abc import Mapping

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# Logical axis of a parameter -> mesh axis. What is not named here is not split.
PARAM_AXES = {
    "vocab": "tp",
    "embed": "fsdp",
    "heads": "tp",
    "kv_heads": "tp",
    "hidden": "tp",
}
# Rows of a batch.
BATCH_AXIS = "fsdp"


def make_mesh(fsdp: int, tp: int) -> Mesh:
    """A mesh with the axes "fsdp" (rows of the batch, slices of every parameter) and "tp" (heads and hidden units)."""
    auto = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh((fsdp, tp), ("fsdp", "tp"), axis_types=auto, devices=jax.devices()[: fsdp * tp])


def auto_mesh(mesh: Mesh) -> Mesh:
    """The same mesh with axes over which the compiler splits by itself; `jax.make_mesh` makes explicit ones unless told so."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def param_sharding(variable: nnx.Variable, mesh: Mesh, rules: Mapping[str, str | None] | None = None) -> NamedSharding:
    """Where one parameter goes, by `PARAM_AXES` or, if given, by `rules` of the same form.

    An axis that its mesh axis does not divide stays whole (two key-value heads on four "tp" devices), and so does a parameter
    that declares no axes of its own, such as an adapter's.
    """
    mesh = auto_mesh(mesh)
    shape = variable.get_value().shape
    axes = variable.get_metadata().get("axes") or ()
    if len(axes) != len(shape):
        return NamedSharding(mesh, PartitionSpec())
    table = PARAM_AXES if rules is None else rules
    places = (_mesh_axis(table.get(axis), size, mesh) for axis, size in zip(axes, shape, strict=True))
    return NamedSharding(mesh, PartitionSpec(*places))


def _mesh_axis(name: str | None, size: int, mesh: Mesh) -> str | None:
    return name if name in mesh.shape and size % mesh.shape[name] == 0 else None


def state_shardings(state: nnx.State, mesh: Mesh) -> nnx.State:
    """The shardings of a model state, in its own structure."""
    return jax.tree.map(
        lambda variable: variable.replace(param_sharding(variable, mesh)), state, is_leaf=lambda x: isinstance(x, nnx.Variable)
    )


def place_model(model: nnx.Module, mesh: Mesh) -> None:
    """Moves a model's parameters to their places on the mesh, in place."""
    state = nnx.state(model)
    nnx.update(model, jax.device_put(state, state_shardings(state, mesh)))


def batch_sharding(mesh: Mesh, ndim: int, *, leading: int, axes: tuple[str, ...] = (BATCH_AXIS,)) -> NamedSharding:
    """Rows split over `axes`; `leading` axes in front of the rows (micro-batches) and all axes behind them stay whole."""
    present = tuple(axis for axis in axes if axis in mesh.shape)
    spec = [None] * leading + [present or None] + [None] * (ndim - leading - 1)
    return NamedSharding(mesh, PartitionSpec(*spec[:ndim]))


def row_parts(mesh: Mesh | None, axes: tuple[str, ...] = (BATCH_AXIS,)) -> int:
    """Over how many devices the rows of a batch are split; None is one device."""
    return 1 if mesh is None else math.prod(mesh.shape[axis] for axis in axes if axis in mesh.shape)


def place_batch(batch: dict[str, np.ndarray], mesh: Mesh, *, leading: int, axes: tuple[str, ...] = (BATCH_AXIS,)):
    """Sends a batch (any pytree of host arrays) to the devices, each process giving its own rows.

    Raises:
      ValueError: if the rows do not divide over the devices that share them.
    """
    parts = row_parts(mesh, axes)

    def place(array):
        array = np.asarray(array)
        rows = array.shape[leading] if array.ndim > leading else 0
        if array.ndim <= leading:
            return jax.device_put(array, NamedSharding(mesh, PartitionSpec()))
        if rows * jax.process_count() % parts:
            raise ValueError(
                f"a batch of {rows * jax.process_count()} rows cannot be split over {parts} devices (mesh axes {axes}): "
                f"make the batch a multiple of {parts}, or the mesh smaller"
            )
        return jax.make_array_from_process_local_data(batch_sharding(mesh, array.ndim, leading=leading, axes=axes), array)

    return jax.tree.map(place, batch)
