"""Model folders in the layout of the Hugging Face hub: safetensors files, read part by part straight onto the mesh.

Each device's part of a parameter is read from the file, brought into place and sent to the device before the next one is read:
host memory holds one such part at a time, beside what the devices themselves need.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, Sharding, SingleDeviceSharding
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tunix_lab.errors import UserError
from tunix_lab.models.config import ModelConfig
from tunix_lab.models.decoder import Decoder
from tunix_lab.models.links import Link, decoder_links
from tunix_lab.models.sharding import param_sharding

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# The usual size of one file of a model that has several.
MAX_FILE_BYTES = 5_000_000_000
# Computed by every reader anew; some old checkpoints store them all the same.
_DERIVED = ("rotary_emb.inv_freq",)


def create_model_from_safe_tensors(
    file_dir: str | Path, config: ModelConfig, mesh: Mesh | None = None, dtype: str | None = None
) -> Decoder:
    """Loads a model of any family from a folder of safetensors.

    Args:
      file_dir: the folder.
      config: the model's shape; its `config.json` is not read.
      mesh: where the parameters go; None is the default device.
      dtype: of parameters and activations; None takes those of `config`.

    Raises:
      UserError: the folder holds no weights, or others than `config` says.
    """
    if dtype is not None:
        config = config.replace(dtype=str(np.dtype(dtype)), param_dtype=str(np.dtype(dtype)))
    return load_decoder(Path(file_dir), config, mesh)


def load_decoder(folder: Path, config: ModelConfig, mesh: Mesh | None, skipped: Sequence[str] = ()) -> Decoder:
    """Builds a decoder from stored tensors, in `config.param_dtype`.

    Args:
      folder: with one or several `*.safetensors`.
      config: the decoder's shape and dtypes.
      mesh: where the parameters go; None is the default device.
      skipped: what names of stored tensors begin with that belong to other parts of a checkpoint, such as a vision tower.

    Raises:
      UserError: no weights, an unreadable file, or tensors that are missing, left over or of another shape, all named at once.
    """
    graph, abstract = nnx.split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))
    variables = {".".join(map(str, path)): (path, variable) for path, variable in nnx.to_flat_state(abstract)}
    stored = _open_all(folder)
    links = decoder_links(config, _prefix(stored))
    shapes = {link.ours: variables[link.ours][1].get_value().shape for link in links}
    _check(folder, config, links, shapes, stored, skipped)
    flat = []
    for link in links:
        path, variable = variables[link.ours]
        sharding = SingleDeviceSharding(jax.devices()[0]) if mesh is None else param_sharding(variable, mesh)
        flat.append((path, variable.replace(_read(link, stored, variable.get_value(), sharding))))
    return nnx.merge(graph, nnx.from_flat_state(flat))


def _read(link: Link, stored: Mapping[str, safe_open], expected: jax.ShapeDtypeStruct, sharding: Sharding) -> jax.Array:
    """One parameter on its devices; devices that hold the same part of it share one reading."""
    parts: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(expected.shape).items():
        bounds = tuple(part.indices(size)[:2] for part, size in zip(index, expected.shape, strict=True))
        parts.setdefault(bounds, []).append(device)
    arrays = []
    for bounds, devices in parts.items():
        part = np.empty([stop - start for start, stop in bounds], expected.dtype)
        names = link.stored_parts(tuple(slice(*pair) for pair in bounds))
        link.load((stored[name].get_slice(name)[index] for name, index in names), part)
        arrays += [jax.device_put(part, device) for device in devices]
    return jax.make_array_from_single_device_arrays(expected.shape, sharding, arrays)


def save_decoder(params: dict[str, jax.Array], config: ModelConfig, folder: Path, max_file_bytes: int = MAX_FILE_BYTES) -> None:
    """Writes the weights; the same parameters give the same bytes.

    Args:
      params: the decoder's parameters by dotted path.
      config: its shape.
      folder: receives the files.
      max_file_bytes: what does not fit into one file of this size goes to several, with an index.
    """
    folder.mkdir(parents=True, exist_ok=True)
    groups = _file_groups(decoder_links(config), params, max_file_bytes)
    if len(groups) == 1:
        save_file(dict(sorted(_stored(groups[0], params).items())), folder / WEIGHTS, metadata={"format": "pt"})
        return
    places: dict[str, str] = {}
    for number, links in enumerate(groups, start=1):
        name = f"model-{number:05}-of-{len(groups):05}.safetensors"
        tensors = _stored(links, params)
        places |= dict.fromkeys(tensors, name)
        save_file(dict(sorted(tensors.items())), folder / name, metadata={"format": "pt"})
    total = sum(array.nbytes for array in params.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _file_groups(links: Sequence[Link], params: dict[str, jax.Array], max_file_bytes: int) -> list[list[Link]]:
    """The links in order, cut into files."""
    groups: list[list[Link]] = [[]]
    size = 0
    for link in links:
        size += params[link.ours].nbytes
        if size > max_file_bytes and groups[-1]:
            groups.append([])
            size = params[link.ours].nbytes
        groups[-1].append(link)
    return groups


def _stored(links: Sequence[Link], params: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    tensors = {}
    for link in links:
        stored = link.save(np.asarray(params[link.ours]))
        tensors |= {name: np.ascontiguousarray(tensor) for name, tensor in zip(link.theirs, stored, strict=True)}
    return tensors


def _prefix(stored: Mapping[str, safe_open]) -> str:
    """What the names of the text model begin with: it stands alone, within a multimodal model, or was saved without its head."""
    table = "embed_tokens.weight"
    return next((name.removesuffix(table) for name in sorted(stored) if name.endswith(table)), "model.")


def _check(
    folder: Path,
    config: ModelConfig,
    links: Sequence[Link],
    shapes: Mapping[str, tuple[int, ...]],
    stored: Mapping[str, safe_open],
    skipped: Sequence[str],
) -> None:
    """Compares names and shapes before anything is read."""
    wanted = {name: link.stored_shape(shapes[link.ours]) for link in links for name in link.theirs}
    beside = tuple(prefix for part in skipped for prefix in (part, f"model.{part}"))
    left = sorted(name for name in stored.keys() - wanted.keys() if not name.startswith(beside) and not name.endswith(_DERIVED))
    if config.tie_embeddings:  # a copy of the embedding table, which readers ignore
        left = [name for name in left if name != "lm_head.weight"]
    problems = [f"missing {name}" for name in sorted(wanted.keys() - stored.keys())]
    problems += [f"unexpected {name}" for name in left]
    for name in sorted(wanted.keys() & stored.keys()):
        shape = tuple(stored[name].get_slice(name).get_shape())
        if shape != wanted[name]:
            problems.append(f"{name}: shape {shape}, expected {wanted[name]}")
    if problems:
        lines = "\n  ".join(sorted(problems, key=lambda problem: not problem.startswith("missing")))
        raise UserError(f"{folder}: the weights do not fit {config.family} of this configuration:\n  {lines}")


def _open_all(folder: Path) -> dict[str, safe_open]:
    """Every stored tensor's name and the open file that holds it."""
    stored = {}
    for path in _weight_files(folder):
        try:
            file = safe_open(path, framework="numpy")
        except FileNotFoundError:
            raise UserError(f"{path}: missing, though {INDEX} names it; fetch the folder again") from None
        except SafetensorError as error:
            raise UserError(f"{path}: not a readable safetensors file ({error}); fetch or make it again") from None
        stored |= dict.fromkeys(file.keys(), file)
    return stored


def _weight_files(folder: Path) -> list[Path]:
    """The files that the index names; without one the single file, or all. Some folders hold a second copy beside them."""
    index = folder / INDEX
    if index.is_file():
        try:
            return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
        except (ValueError, KeyError, AttributeError) as error:
            raise UserError(f"{index}: not an index of safetensors files ({error}); fetch the folder again") from None
    files = [folder / WEIGHTS] if (folder / WEIGHTS).is_file() else sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder}: no *.safetensors files there")
    return files
