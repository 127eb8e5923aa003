"""The reference's log-probabilities of a whole preference dataset, computed once, so that the reference can leave memory."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from tunix_lab.data.array_cache import read_arrays, write_arrays
from tunix_lab.data.pipeline import eval_batches
from tunix_lab.models.decoder import Decoder
from tunix_lab.models.sharding import place_batch
from tunix_lab.sft.dpo.dpo_trainer import REFERENCE_COLUMNS, answer_logps
from tunix_lab.sft.train_state import digest, flat_params, mesh_of

Example = Mapping[str, np.ndarray]


def with_reference_logps(
    reference: Decoder, examples: Sequence[Example], batch_size: int, cache: Path | None = None
) -> list[dict[str, np.ndarray]]:
    """The examples with `ref_chosen` and `ref_rejected`: summed log-probabilities of the answers under the reference, float32 [].

    Args:
      reference: the frozen model, in the state in which it is the reference.
      examples: tokenised preferences, as `data.pairs.preference_examples` gives them.
      batch_size: pairs at a time.
      cache: folder that keeps the results under the hash of all that their bits depend on; None keeps none.
    """
    path = None if cache is None else cache / f"{_identity(reference, examples, batch_size)}.npz"
    columns = None if path is None else read_arrays(path)
    if columns is None or not columns.keys() >= set(REFERENCE_COLUMNS):
        columns = _compute(reference, examples, batch_size)
        if path is not None:
            write_arrays(path, columns, "the reference's log-probabilities")
    return [dict(example) | {name: columns[name][i] for name in REFERENCE_COLUMNS} for i, example in enumerate(examples)]


def _compute(reference: Decoder, examples: Sequence[Example], batch_size: int) -> dict[str, np.ndarray]:
    graph, state = nnx.split(reference)
    mesh = mesh_of(flat_params(state))
    compiled = jax.jit(lambda state, batch: answer_logps(nnx.merge(graph, state), batch)[:2])
    place = jax.device_put if mesh is None else lambda batch: place_batch(batch, mesh, leading=0)
    batches = [jax.device_get(compiled(state, place(batch))) for batch in eval_batches(examples, batch_size)]
    columns = (np.concatenate(parts)[: len(examples)] for parts in zip(*batches, strict=True))
    return dict(zip(REFERENCE_COLUMNS, columns, strict=True))


def _identity(reference: Decoder, examples: Sequence[Example], batch_size: int) -> str:
    """sha256 of what the bits of the results depend on: the reference, the examples, and how and on what they are computed.

    The order of a sum on a device follows from shapes, partition, compiler and kind of device, so each of them counts.
    """
    params = flat_params(nnx.state(reference))
    device, mesh = jax.devices()[0], mesh_of(params)
    how = {
        "model": repr(reference.config),
        "batch_size": batch_size,
        "mesh": None if mesh is None else dict(mesh.shape),
        "device": [device.platform, device.device_kind],
        "backend": device.client.platform_version,
        "jax": [jax.__version__, jax.config.jax_default_matmul_precision],
    }
    sha = hashlib.sha256((digest(params) + json.dumps(how)).encode())
    for example in examples:
        for name in sorted(example):
            array = np.ascontiguousarray(example[name])
            sha.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return sha.hexdigest()
