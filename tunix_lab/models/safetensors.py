"""Model folders in the layout of the Hugging Face hub: `config.json` and safetensors, read tensor by tensor onto the mesh.

A family describes its layout as a list of `Link`s; reading and writing follow them in both directions.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tunix_lab.errors import UserError
from tunix_lab.models.config import ModelConfig
from tunix_lab.models.decoder import Decoder
from tunix_lab.models.sharding import param_sharding

WEIGHTS = "model.safetensors"


@dataclasses.dataclass(frozen=True)
class Link:
    """One parameter of the decoder and the tensors it is stored in.

    Attributes:
      ours: dotted path of the parameter.
      theirs: names of the stored tensors.
      load: stored tensors -> parameter.
      save: parameter -> stored tensors, the inverse.
    """

    ours: str
    theirs: tuple[str, ...]
    load: Callable[..., np.ndarray]
    save: Callable[[np.ndarray], tuple[np.ndarray, ...]]


def load_decoder(folder: Path, config: ModelConfig, links: Sequence[Link], mesh: Mesh | None) -> Decoder:
    """Builds a decoder from stored tensors; each goes from the file straight to its place, in `config.param_dtype`.

    Args:
      folder: with one or several `*.safetensors`.
      config: the decoder's shape and dtypes.
      links: the layout of the family.
      mesh: where the parameters go; None is the default device.

    Raises:
      UserError: no weights, an unreadable file, or tensors that are missing, left over or of another shape, all named at once.
    """
    graph, abstract = nnx.split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))
    variables = {".".join(map(str, path)): (path, variable) for path, variable in nnx.to_flat_state(abstract)}
    stored = _open_all(folder)
    wanted = {name for link in links for name in link.theirs}
    problems = [f"missing {name}" for name in sorted(wanted - stored.keys())]
    problems += [f"unexpected {name}" for name in sorted(stored.keys() - wanted)]
    if problems:
        raise UserError(_mismatch(folder, config, problems))
    flat = []
    for link in links:
        path, variable = variables[link.ours]
        expected = variable.get_value()
        try:
            value = link.load(*(stored[name].get_tensor(name) for name in link.theirs))
        except ValueError as error:
            problems.append(f"{' + '.join(link.theirs)}: {error}")
            continue
        if value.shape != expected.shape:
            problems.append(f"{' + '.join(link.theirs)}: shape {value.shape} after loading, expected {expected.shape}")
            continue
        value = value.astype(expected.dtype)
        flat.append((path, variable.replace(jax.device_put(value, None if mesh is None else param_sharding(variable, mesh)))))
    if problems:
        raise UserError(_mismatch(folder, config, problems))
    return nnx.merge(graph, nnx.from_flat_state(flat))


def save_decoder(params: dict[str, jax.Array], links: Sequence[Link], folder: Path) -> None:
    """Writes `model.safetensors`; the same parameters give the same bytes."""
    tensors = {}
    for link in links:
        stored = link.save(np.asarray(params[link.ours]))
        tensors |= {name: np.ascontiguousarray(tensor) for name, tensor in zip(link.theirs, stored, strict=True)}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(sorted(tensors.items())), folder / WEIGHTS, metadata={"format": "pt"})


def read_config_json(folder: Path) -> dict[str, object]:
    """The folder's `config.json`.

    Raises:
      UserError: there is none, or it is not JSON.
    """
    path = folder / "config.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{folder}: no config.json; give a folder in the layout of the Hugging Face hub") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None


def _open_all(folder: Path) -> dict[str, safe_open]:
    """Every stored tensor's name and the open file that holds it."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder}: no *.safetensors files there")
    stored = {}
    for path in files:
        try:
            file = safe_open(path, framework="numpy")
        except SafetensorError as error:
            raise UserError(f"{path}: not a readable safetensors file ({error}); fetch or make it again") from None
        stored |= dict.fromkeys(file.keys(), file)
    return stored


def _mismatch(folder: Path, config: ModelConfig, problems: Sequence[str]) -> str:
    return f"{folder}: the weights do not fit {config.family} of this configuration:\n  " + "\n  ".join(problems)
