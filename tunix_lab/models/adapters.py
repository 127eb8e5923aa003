"""Low-rank adapters on a decoder (https://arxiv.org/abs/2106.09685): put on through qwix, taken off, folded into the weights."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import qwix
from flax import nnx
from jax.sharding import Mesh

from tunix_lab.errors import UserError
from tunix_lab.models.decoder import Decoder
from tunix_lab.models.experts import ExpertWeights
from tunix_lab.models.layers import Einsum
from tunix_lab.models.sharding import place_model

# Purpose of a random key, so that adapters and base weights of one seed have nothing in common.
_ADAPTER_KEY = 1


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
      UserError: nothing matches `targets`, or something that can carry no adapter, or `tile_size` does not divide an axis.
    """
    _check_targets(model, targets)
    quantized = {} if weight_qtype is None else {"weight_qtype": weight_qtype, "tile_size": tile_size}
    provider = qwix.LoraProvider(module_path=targets, rank=rank, alpha=alpha, **quantized)
    key = jax.random.fold_in(jax.random.key(seed), _ADAPTER_KEY)
    try:
        adapted = qwix.apply_lora_to_model(model, provider, **model.get_model_input(), rngs=nnx.Rngs(params=key))
    except ValueError as error:
        raise UserError(f"adapter: {error}; tile_size must divide the contracted axes of every targeted weight") from error
    _name_axes(adapted)
    if mesh is not None:
        place_model(adapted, mesh)
    return adapted


def _check_targets(model: Decoder, targets: str) -> None:
    matching = [module for path, module in nnx.iter_modules(model) if re.fullmatch(targets, "/".join(map(str, path)))]
    if any(isinstance(module, ExpertWeights) for module in matching):
        raise UserError(
            f"adapter: targets {targets!r} match the weights of experts, which carry no adapter; "
            "name the attention alone: '.*q_einsum|.*kv_einsum|.*attn_vec_einsum'"
        )
    if not any(isinstance(module, Einsum) for module in matching):
        raise UserError(f"adapter: no module matches targets {targets!r}; there is for example 'layers/0/attn/q_einsum'")


def _name_axes(adapted: Decoder) -> None:
    """Gives the factors the logical axes of the weight that they belong to, so that they lie on a mesh like it."""
    for _, module in nnx.iter_modules(adapted):
        if isinstance(module, Einsum) and "w_lora_a" in vars(module):
            names = dict(zip(module.weight_letters, module.axes, strict=True))
            contracted, kept = module.contracted_and_kept
            module.w_lora_a.set_metadata(axes=(*(names[letter] for letter in contracted), None))
            module.w_lora_b.set_metadata(axes=(None, *(names[letter] for letter in kept)))


def has_adapters(model: nnx.Module) -> bool:
    """Whether any variable of the model is a factor of an adapter."""
    return any(isinstance(variable, nnx.LoRAParam) for _, variable in nnx.to_flat_state(nnx.state(model)))


def adapter_off(adapted: Decoder) -> Decoder:
    """The model without its adapters: the base's own program on the very arrays that `adapted` holds, so equal to it bit for bit.

    Nothing is copied: this is the frozen reference of preference and reinforcement learning at no cost in memory. A base that was
    quantized for the adapters stays so.

    Raises:
      UserError: the model has no adapters.
    """
    _demand_adapters(adapted)
    config = adapted.config
    rules = _quantization_of(adapted)

    def build() -> Decoder:
        base = Decoder(config, rngs=nnx.Rngs(0))
        return qwix.quantize_model(base, qwix.PtqProvider(rules), **base.get_model_input()) if rules else base

    graph, _ = nnx.split(nnx.eval_shape(build))
    return nnx.merge(graph, nnx.state(adapted, lambda _, variable: not isinstance(variable, nnx.LoRAParam)))


def _quantization_of(model: Decoder) -> list[qwix.QuantizationRule]:
    """How the weights of a model are quantized; [] if they are plain."""
    rules = []
    for path, module in nnx.iter_modules(model):
        if isinstance(module, Einsum) and not isinstance(module.w, nnx.Variable):
            how = module.w.how
            name = re.escape("/".join(map(str, path)))
            tile_size = next(iter(how.tiled_axes.values()), None)
            rules.append(qwix.QuantizationRule(module_path=name, weight_qtype=how.qtype, tile_size=tile_size))
    return rules


def merge_lora(base: Decoder, adapted: Decoder, *, rank: int, alpha: float) -> Decoder:
    """A plain decoder whose weights are those of `base` with the updates of `adapted` added; `merged_params` as a model."""
    return with_params(base, merged_params(base, adapted, rank=rank, alpha=alpha))


def merged_params(base: Decoder, adapted: Decoder, *, rank: int, alpha: float) -> dict[str, jax.Array]:
    """The base's parameters by dotted path with the adapters' updates added, in float32 and rounded once.

    Where the base was quantized for training, the merged model differs from the trained one by the quantization error.

    Args:
      base: the decoder with plain weights.
      adapted: the same with trained adapters.
      rank: of the adapters.
      alpha: of the adapters.

    Raises:
      UserError: `adapted` has no adapters (they may be merged already), or `base` has some.
    """
    _demand_adapters(adapted)
    return merge_factors(base, adapter_factors(adapted), alpha / rank)


def merge_factors(base: Decoder, factors: Mapping[str, tuple[Any, Any]], scale: float) -> dict[str, jax.Array]:
    """The base's parameters by dotted path with updates added, in float32 and rounded once.

    Args:
      base: the decoder with plain weights.
      factors: (a, b) of each adapted module by its dotted path, as `adapter_factors` gives them.
      scale: of the updates.

    Raises:
      UserError: `base` has adapters of its own.
    """
    if has_adapters(base):
        raise UserError("merge: the base has adapters itself; give the plain model that they were put on")
    params = {_dotted(path): variable.get_value() for path, variable in nnx.to_flat_state(nnx.state(base))}
    modules = {_dotted(path): module for path, module in nnx.iter_modules(base) if isinstance(module, Einsum)}
    for name, (a, b) in factors.items():
        contracted, kept = modules[name].contracted_and_kept
        product = f"{contracted}z,z{kept}->{modules[name].weight_letters}"  # z is the rank
        weight = params[f"{name}.w"]
        a32, b32 = jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)
        delta = jnp.einsum(product, a32, b32, precision=jax.lax.Precision.HIGHEST) * scale
        params[f"{name}.w"] = (weight.astype(jnp.float32) + delta).astype(weight.dtype)
    return params


def with_params(base: Decoder, params: Mapping[str, jax.Array]) -> Decoder:
    """The decoder with other parameters, given by dotted path."""
    graph, state = nnx.split(base)
    flat = [(path, variable.replace(params[_dotted(path)])) for path, variable in nnx.to_flat_state(state)]
    return nnx.merge(graph, nnx.from_flat_state(flat))


def set_factors(adapted: Decoder, factors: Mapping[str, tuple[Any, Any]]) -> None:
    """Gives the adapters of a model these factors, as `adapter_factors` names them."""
    values = {
        f"{name}.w_lora_{letter}": array for name, pair in factors.items() for letter, array in zip("ab", pair, strict=True)
    }
    flat = nnx.to_flat_state(nnx.state(adapted, nnx.LoRAParam))
    changed = [
        (path, variable.replace(jnp.asarray(values[_dotted(path)], variable.get_value().dtype))) for path, variable in flat
    ]
    nnx.update(adapted, nnx.from_flat_state(changed))


def adapter_factors(adapted: Decoder) -> dict[str, tuple[jax.Array, jax.Array]]:
    """The factors (a, b) of every adapted module by its dotted path.

    a has the weight's contracted axes and then the rank; b has the rank and then the weight's other axes.
    """
    flat = {_dotted(path): variable.get_value() for path, variable in nnx.to_flat_state(nnx.state(adapted, nnx.LoRAParam))}
    names = [name.removesuffix(".w_lora_a") for name in flat if name.endswith(".w_lora_a")]
    return {name: (flat[f"{name}.w_lora_a"], flat[f"{name}.w_lora_b"]) for name in names}


def _demand_adapters(model: Decoder) -> None:
    if not has_adapters(model):
        raise UserError("the model has no adapters: none were added, or they are merged already")


def parameter_table(model: nnx.Module, trained: type[nnx.Variable]) -> list[tuple[str, str, int, int]]:
    """What is trained and what is not: (name with layers as *, shapes, number of parameters, number of them that are trained).

    Args:
      model: of any kind.
      trained: the type of the variables that are trained: `nnx.LoRAParam` or `nnx.Param`.
    """
    count: Counter[str] = Counter()
    n_trained: Counter[str] = Counter()
    shapes: dict[str, set[tuple[int, ...]]] = {}
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        name = re.sub(r"\.\d+\.", ".*.", _dotted(path))
        size = variable.get_value().size
        count[name] += size
        n_trained[name] += size if isinstance(variable, trained) else 0
        shapes.setdefault(name, set()).add(variable.get_value().shape)
    return [(name, ", ".join(map(str, sorted(shapes[name]))), count[name], n_trained[name]) for name in sorted(count)]


def _dotted(path: Iterable[Any]) -> str:
    return ".".join(map(str, path))
