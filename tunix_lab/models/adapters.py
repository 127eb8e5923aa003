"""Low-rank adapters on a decoder: put on through qwix, and folded back into the weights."""

import re
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import qwix
from flax import nnx
from jax.sharding import Mesh

from tunix_lab.errors import UserError
from tunix_lab.models.decoder import Decoder
from tunix_lab.models.layers import Einsum
from tunix_lab.models.sharding import place_model


def add_lora(
    model: Decoder,
    *,
    rank: int,
    alpha: float,
    targets: str,
    seed: int,
    mesh: Mesh | None = None,
    weight_qtype: str | None = None,
    tile_size: int | None = None,
) -> Decoder:
    """A copy of the model whose targeted modules compute w·x + (alpha/rank)·b·a·x; b starts at zero.

    Args:
      model: the base; its arrays are shared, not copied, unless they are quantized.
      rank: of each update.
      alpha: scale of the updates.
      targets: regular expression that the path of an adapted module must match.
      seed: of the adapters' random factors.
      mesh: where the adapters go; None is the default device.
      weight_qtype: quantize the adapted base weights to this type ("nf4", "int8", "int4": QLoRA); None keeps them.
      tile_size: weights that share one scale, when quantizing.

    Raises:
      UserError: nothing matches `targets`, or `tile_size` does not divide an axis.
    """
    quantized = {} if weight_qtype is None else {"weight_qtype": weight_qtype, "tile_size": tile_size}
    provider = qwix.LoraProvider(module_path=targets, rank=rank, alpha=alpha, **quantized)
    try:
        adapted = qwix.apply_lora_to_model(model, provider, **model.get_model_input(), rngs=nnx.Rngs(seed))
    except ValueError as error:
        raise UserError(f"adapter: {error}; tile_size must divide the contracted axes of every targeted weight") from error
    if not jax.tree.leaves(nnx.state(adapted, nnx.LoRAParam)):
        raise UserError(f"adapter: no module matches targets {targets!r}; there is for example 'layers/0/attn/q_einsum'")
    if mesh is not None:
        place_model(adapted, mesh)
    return adapted


def merged_params(base: Decoder, adapted: Decoder, *, rank: int, alpha: float) -> dict[str, jax.Array]:
    """The base's parameters by dotted path with the adapters' updates added, in float32 and rounded once.

    Args:
      base: the decoder with plain weights.
      adapted: the same with trained adapters.
      rank: of the adapters.
      alpha: of the adapters.
    """
    params = _by_path((path, variable.get_value()) for path, variable in nnx.to_flat_state(nnx.state(base)))
    factors = _by_path((path, variable.get_value()) for path, variable in nnx.to_flat_state(nnx.state(adapted, nnx.LoRAParam)))
    equations = _by_path((path, module.equation) for path, module in nnx.iter_modules(base) if isinstance(module, Einsum))
    for name in [name for name in factors if name.endswith(".w_lora_a")]:
        module = name.removesuffix(".w_lora_a")
        a, b = factors[name].astype(jnp.float32), factors[f"{module}.w_lora_b"].astype(jnp.float32)
        weight = params[f"{module}.w"]
        delta = jnp.einsum(_product(equations[module]), a, b) * (alpha / rank)
        params[f"{module}.w"] = (weight.astype(jnp.float32) + delta).astype(weight.dtype)
    return params


def _by_path(items: Iterable[tuple[tuple[Any, ...], Any]]) -> dict[str, Any]:
    return {".".join(map(str, path)): item for path, item in items}


def _product(equation: str) -> str:
    """The einsum of the factors that gives an update shaped like the weight: "btd,ndh->btnh" -> "dz,znh->ndh".

    The first factor has the weight's contracted axes and then the rank z, the second the rank and then the other axes.
    """
    _, weight, out = re.fullmatch(r"(\w+),(\w+)->(\w+)", equation).groups()
    contracted = "".join(axis for axis in weight if axis not in out)
    kept = "".join(axis for axis in weight if axis in out)
    return f"{contracted}z,z{kept}->{weight}"
