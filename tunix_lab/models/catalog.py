"""The model families: which code reads and writes each; folders tell their family in `config.json`."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import jax
from jax.sharding import Mesh

from tunix_lab.errors import UserError
from tunix_lab.models.config import ModelConfig
from tunix_lab.models.decoder import Decoder
from tunix_lab.models.gemma3 import params_safetensors as gemma3
from tunix_lab.models.safetensors import Link, load_decoder, read_config_json, save_decoder


@dataclasses.dataclass(frozen=True)
class Family:
    """The hub layout of a family."""

    links: Callable[[ModelConfig], list[Link]]
    to_config_json: Callable[[ModelConfig], dict[str, object]]
    from_config_json: Callable[[dict[str, object], Path], ModelConfig]


FAMILIES = {
    "gemma3": Family(gemma3.links, gemma3.to_config_json, gemma3.from_config_json),
}
_ARCHITECTURES = {gemma3.ARCHITECTURE: "gemma3"}


def read_config(folder: Path) -> ModelConfig:
    """The configuration of a model folder.

    Raises:
      UserError: the folder has no usable config.json, or its architecture is not served.
    """
    stored = read_config_json(folder)
    for architecture in stored.get("architectures", []):
        if architecture in _ARCHITECTURES:
            try:
                return FAMILIES[_ARCHITECTURES[architecture]].from_config_json(stored, folder)
            except KeyError as error:
                raise UserError(f"{folder}/config.json: field {error} is missing or has a value that is not served") from None
    raise UserError(
        f"{folder}/config.json: architecture {stored.get('architectures')} is not served; there are {', '.join(_ARCHITECTURES)}"
    )


def load_model(folder: str | Path, mesh: Mesh | None = None, dtype: str | None = None, param_dtype: str | None = None) -> Decoder:
    """Loads the model of a folder; `config.json` says which family and size.

    Args:
      folder: in the layout of the Hugging Face hub.
      mesh: where the parameters go; None is the default device.
      dtype: of activations; None is that of the folder.
      param_dtype: of parameters; None is that of the folder.

    Raises:
      UserError: the folder cannot be used; the message says why.
    """
    config = read_config(Path(folder))
    config = config.replace(dtype=dtype or config.dtype, param_dtype=param_dtype or config.param_dtype)
    return load_decoder(Path(folder), config, FAMILIES[config.family].links(config), mesh)


def save_model(params: dict[str, jax.Array], config: ModelConfig, folder: str | Path) -> None:
    """Writes `config.json` and `model.safetensors` of a decoder's parameters (by dotted path); deterministic."""
    family = FAMILIES[config.family]
    save_decoder(params, family.links(config), Path(folder))
    (Path(folder) / "config.json").write_text(json.dumps(family.to_config_json(config), indent=2) + "\n")
