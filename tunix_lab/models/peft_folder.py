"""Adapters on disk as the PEFT library lays them out: adapter_config.json and adapter_model.safetensors, written and read.

PEFT adapts the modules of `transformers`, whose weights are [out, in]: lora_A is [rank, in] and lora_B [out, rank]. Which of our
axes make up `in` and `out` stands in the name map of the weights. Our key-value module is two of theirs: keys and values share A.
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from tunix_lab.errors import UserError
from tunix_lab.models.config import ModelConfig
from tunix_lab.models.config_json import read_config_json
from tunix_lab.models.links import Link, decoder_links

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
TEXT_MODEL = "model."
"""What the names of a model's modules begin with in `transformers`."""

# Factors (a, b) of each adapted module by dotted path, as `adapters.adapter_factors` gives them.
Factors = dict[str, tuple[Any, Any]]

_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "gate")
_STORED = re.compile(r"base_model\.model\.(?:\w+\.)*?(layers\.\d+\.[\w.]+)\.lora_([AB])\.weight", re.ASCII)
# What changes the meaning of the tensors, and the values with which it does not.
_DEMANDED = {"peft_type": ("LORA",), "bias": ("none",), "fan_in_fan_out": (False,), "use_rslora": (False,), "use_dora": (False,)}
_ABSENT = (
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "target_parameters",
    "layer_replication",
    "alora_invocation_tokens",
)


@dataclasses.dataclass(frozen=True)
class Lora:
    """What is known of an adapter beside its factors.

    Attributes:
      rank: of each update.
      alpha: the updates are scaled by alpha / rank.
      base: what it adapts, a repository of the hub or a folder (relative to the project); None: random weights, kept nowhere.
      revision: commit of the repository; None for a folder.
    """

    rank: int
    alpha: float
    base: str | None
    revision: str | None = None

    @property
    def scale(self) -> float:
        """What the product of the factors is multiplied by."""
        return self.alpha / self.rank


def module_prefix(base: Path) -> str:
    """What the names of the base's modules begin with in `transformers`; in a multimodal one the text model is a part."""
    return f"{TEXT_MODEL}language_model." if "text_config" in read_config_json(base) else TEXT_MODEL


def write_peft(folder: Path, factors: Factors, config: ModelConfig, lora: Lora, prefix: str = TEXT_MODEL) -> None:
    """Writes the two files of an adapter; the same factors give the same bytes.

    Args:
      folder: receives the files.
      factors: of every adapted module.
      config: of the decoder.
      lora: rank, scale and base.
      prefix: see `module_prefix`.
    """
    tensors = {}
    links = _links(config, prefix)
    for name, (a, b) in factors.items():
        tensors |= dict(_stored(links[name], np.asarray(a), np.asarray(b)))
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}, folder / WEIGHTS, metadata={"format": "pt"}
    )
    modules = [_module(stored) for name in factors for stored in links[name].theirs]
    described = {
        "base_model_name_or_path": lora.base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": lora.rank,
        "revision": lora.revision,
        "target_modules": _targets(modules, config.num_layers, prefix),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    (folder / CONFIG).write_text(json.dumps(described, indent=2) + "\n")


def read_peft(folder: Path, config: ModelConfig) -> tuple[Lora, Factors]:
    """An adapter and its factors, as arrays on the host.

    Keys and values that do not share their A, which PEFT can train, become one module of twice the rank: A is [A_k A_v], and each
    half of B meets zeros in the other's place. Where only one of the two is adapted, the other's B is zero.

    Raises:
      UserError: a file is missing or unreadable, or the adapter is of a kind that is not served.
    """
    lora = read_lora(folder)
    stored = _read_tensors(folder)
    factors: Factors = {}
    for name, link in _links(config, "").items():
        pairs = [_take_pair(stored, _module(theirs), folder) for theirs in link.theirs]
        present = [pair for pair in pairs if pair is not None]
        if present:
            untouched = (present[0][0], np.zeros_like(present[0][1]))
            factors[name] = _ours(link, [untouched if pair is None else pair for pair in pairs])
    if stored:
        raise UserError(f"{folder}/{WEIGHTS}: the model has no modules that could be adapted so: {', '.join(sorted(stored))}")
    return lora, factors


def _take_pair(stored: dict[str, np.ndarray], module: str, folder: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """The (A, B) of one of their modules, taken out of `stored`; None if it is not adapted."""
    lora_a, lora_b = stored.pop(f"{module}.A", None), stored.pop(f"{module}.B", None)
    if lora_a is None and lora_b is None:
        return None
    if lora_a is None or lora_b is None:
        raise UserError(f"{folder}/{WEIGHTS}: {module} has only one of lora_A and lora_B")
    return lora_a, lora_b


def read_lora(folder: Path) -> Lora:
    """What adapter_config.json says.

    Raises:
      UserError: it is missing or no JSON, or asks for a kind of adapter that is not served.
    """
    place = folder / CONFIG
    try:
        described = json.loads(place.read_text())
    except FileNotFoundError:
        raise UserError(f"{folder}: no {CONFIG}, so no adapter in PEFT's layout") from None
    except ValueError as error:
        raise UserError(f"{place}: not valid JSON: {error}") from None
    for name, served in _DEMANDED.items():
        if described.get(name, served[0]) not in served:
            raise UserError(f"{place}: {name} = {described[name]!r} is not served, only {served[0]!r}")
    for name in _ABSENT:
        if described.get(name):
            raise UserError(f"{place}: {name} = {described[name]!r} is not served")
    base, revision = described.get("base_model_name_or_path"), described.get("revision")
    return Lora(described["r"], float(described["lora_alpha"]), base, revision)


def cast_factors(factors: Factors, dtype: str | None) -> Factors:
    """The factors in another dtype; None keeps theirs."""
    if dtype is None:
        return factors
    return {name: (np.asarray(a).astype(dtype), np.asarray(b).astype(dtype)) for name, (a, b) in factors.items()}


def _links(config: ModelConfig, prefix: str) -> dict[str, Link]:
    """The name map of every module that can carry an adapter, by the module's path: matrices of layers, those of experts not."""
    found = {link.ours.removesuffix(".w"): link for link in decoder_links(config, prefix) if len(link.stored_axes) == 2}
    carries = "layers." if config.experts is None else r"layers\.\d+\.(attn\.|mlp\.router)"
    return {name: link for name, link in found.items() if re.match(carries, name)}


def _module(stored: str) -> str:
    """The module of a stored weight."""
    return stored.removesuffix(".weight")


def _targets(modules: Sequence[str], num_layers: int, prefix: str) -> list[str]:
    """What PEFT is told to adapt: bare names if they are adapted in every layer, else each module by its whole name.

    In a multimodal model a bare name would also match the vision tower.
    """
    bare = [module.rpartition(".")[2] for module in modules]
    if prefix == TEXT_MODEL and all(bare.count(name) == num_layers for name in bare):
        return [name for name in _MODULES if name in bare]
    return sorted(modules)


def _stored(link: Link, a: np.ndarray, b: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """PEFT's tensors of one module of ours."""
    out, inside = link.stored_axes
    stack = ["stack"] if link.is_stacked else []
    lora_a = rearrange(a, f"{_join(_in_order(link, inside), 'rank')} -> rank ({_join(inside)})")
    lora_b = rearrange(b, f"{_join('rank', stack, _in_order(link, out))} -> {_join(stack)} ({_join(out)}) rank")
    for name, part in zip(link.theirs, lora_b if link.is_stacked else [lora_b], strict=True):
        yield f"base_model.model.{_module(name)}.lora_A.weight", lora_a
        yield f"base_model.model.{_module(name)}.lora_B.weight", part


def _ours(link: Link, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The factors (a, b) of one module from the (A, B) of each that it is stored in; the inverse of `_stored`."""
    out, inside = link.stored_axes
    first = pairs[0][0]
    if all(np.array_equal(lora_a, first) for lora_a, _ in pairs):
        lora_a, parts = first, [lora_b for _, lora_b in pairs]
    else:
        lora_a = np.concatenate([lora_a for lora_a, _ in pairs])
        ranks = [len(a) for a, _ in pairs]
        starts = np.cumsum([0, *ranks])
        parts = [np.zeros((len(lora_b), len(lora_a)), lora_b.dtype) for _, lora_b in pairs]
        for part, (_, lora_b), start, rank in zip(parts, pairs, starts, ranks, strict=False):
            part[:, start : start + rank] = lora_b
    sizes = dict(link.inner)
    inner = lambda axes: {axis: size for axis, size in sizes.items() if axis in axes and len(axes) > 1}  # noqa: E731
    a = rearrange(lora_a, f"rank ({_join(inside)}) -> {_join(_in_order(link, inside), 'rank')}", **inner(inside))
    spread = [rearrange(part, f"({_join(out)}) rank -> {_join('rank', _in_order(link, out))}", **inner(out)) for part in parts]
    return a, (np.stack(spread, axis=1) if link.is_stacked else spread[0])


def _in_order(link: Link, axes: Sequence[str]) -> list[str]:
    """`axes` in the order in which the parameter has them."""
    return [axis for axis in link.our_axes if axis in axes]


def _join(*axes: str | Sequence[str]) -> str:
    return " ".join(name for part in axes for name in ([part] if isinstance(part, str) else part))


def _read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """Factors by "layers.0.self_attn.q_proj.A", whatever the model around the layers is called."""
    path = folder / WEIGHTS
    try:
        tensors: Mapping[str, np.ndarray] = load_file(path)
    except FileNotFoundError:
        raise UserError(f"{folder}: no {WEIGHTS}; fetch or export the adapter again") from None
    except SafetensorError as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); fetch or export it again") from None
    named = {}
    for name, tensor in tensors.items():
        match = _STORED.fullmatch(name)
        if match is None:
            raise UserError(f"{path}: {name} is no factor of a layer's module, and so not served")
        named[f"{match[1]}.{match[2]}"] = tensor
    return named
