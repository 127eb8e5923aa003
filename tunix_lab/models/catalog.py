"""The model families: a folder's `config.json` tells its family, and the family's name map and configuration do the rest."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
from jax.sharding import Mesh

from tunix_lab.errors import UserError
from tunix_lab.models.config import ModelConfig
from tunix_lab.models.config_json import read_config_json
from tunix_lab.models.decoder import Decoder
from tunix_lab.models.gemma import params_safetensors as gemma
from tunix_lab.models.gemma2 import params_safetensors as gemma2
from tunix_lab.models.gemma3 import params_safetensors as gemma3
from tunix_lab.models.hub import fetch, is_hub_id
from tunix_lab.models.llama3 import params_safetensors as llama3
from tunix_lab.models.mistral import params_safetensors as mistral
from tunix_lab.models.qwen2 import params_safetensors as qwen2
from tunix_lab.models.qwen3 import params_safetensors as qwen3
from tunix_lab.models.qwen3_moe import params_safetensors as qwen3_moe
from tunix_lab.models.safetensors import MAX_FILE_BYTES, load_decoder, save_decoder


@dataclasses.dataclass(frozen=True)
class Family:
    """A family's place on the hub.

    Attributes:
      architectures: names in `config.json` that it serves.
      skipped: what names of stored tensors begin with that are not loaded.
      from_config_json: (content, its place for messages) -> configuration.
      to_config_json: the inverse.
    """

    architectures: tuple[str, ...]
    skipped: tuple[str, ...]
    from_config_json: Callable[[Mapping[str, Any], str], ModelConfig]
    to_config_json: Callable[[Any], dict[str, Any]]


def _family(module: ModuleType) -> Family:
    return Family(module.ARCHITECTURES, module.SKIPPED, module.from_config_json, module.to_config_json)


FAMILIES = {
    "gemma": _family(gemma),
    "gemma2": _family(gemma2),
    "gemma3": _family(gemma3),
    "llama3": _family(llama3),
    "mistral": _family(mistral),
    "qwen2": _family(qwen2),
    "qwen3": _family(qwen3),
    "qwen3_moe": _family(qwen3_moe),
}
_FAMILY_OF = {architecture: name for name, family in FAMILIES.items() for architecture in family.architectures}


def read_config(folder: Path) -> ModelConfig:
    """The configuration of a model folder.

    Raises:
      UserError: the folder has no usable config.json, or something in it is not served; the message names it.
    """
    stored = read_config_json(folder)
    place = f"{folder}/config.json"
    if "quantization_config" in stored:
        raise UserError(
            f"{place}: quantized weights are not served; take the plain checkpoint and quantize with adapter.kind: qlora"
        )
    for architecture in stored.get("architectures") or []:
        if architecture in _FAMILY_OF:
            return FAMILIES[_FAMILY_OF[architecture]].from_config_json(stored, place)
    served = ", ".join(sorted(_FAMILY_OF))
    raise UserError(f"{place}: architecture {stored.get('architectures')} is not served; there are {served}")


def load_model(
    model: str | Path,
    mesh: Mesh | None = None,
    dtype: str | None = None,
    param_dtype: str | None = None,
    *,
    revision: str | None = None,
) -> Decoder:
    """Loads a model; `config.json` says which family and size.

    Args:
      model: a folder in the layout of the Hugging Face hub, or the hub's id of one, such as "google/gemma-3-1b-it".
      mesh: where the parameters go; None is the default device.
      dtype: of activations; None is that of the folder.
      param_dtype: of parameters; None is that of the folder.
      revision: commit, tag or branch on the hub; None is its newest. Pin a commit to get the same model again.

    Raises:
      UserError: the model cannot be found or used; the message says why.
    """
    folder = fetch(str(model), revision).folder if is_hub_id(str(model)) else Path(model)
    config = read_config(folder)
    config = config.replace(dtype=dtype or config.dtype, param_dtype=param_dtype or config.param_dtype)
    return load_decoder(folder, config, mesh, FAMILIES[config.family].skipped)


def save_model(
    params: dict[str, jax.Array],
    config: ModelConfig,
    folder: str | Path,
    *,
    max_file_bytes: int = MAX_FILE_BYTES,
    **more: Any,
) -> None:
    """Writes `config.json` and the weights of a decoder's parameters (by dotted path); deterministic.

    Args:
      params: the parameters.
      config: their shape.
      folder: receives the files.
      max_file_bytes: weights that do not fit into one file of this size go to several, with an index.
      **more: further fields of `config.json`, such as the tokenizer's ids.
    """
    save_decoder(params, config, Path(folder), max_file_bytes)
    stored = FAMILIES[config.family].to_config_json(config) | more
    (Path(folder) / "config.json").write_text(json.dumps(stored, indent=2) + "\n")
