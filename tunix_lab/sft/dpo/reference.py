"""The reference's log-probabilities of a whole preference dataset, computed once, so that the reference can leave memory."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from tunix_lab.data.pipeline import eval_batches
from tunix_lab.models.sharding import place_batch
from tunix_lab.sft.dpo.dpo_trainer import REFERENCE_COLUMNS, answer_logps
from tunix_lab.sft.train_state import digest, flat_params, mesh_of

Example = Mapping[str, np.ndarray]


def with_reference_logps(
    reference: nnx.Module, examples: Sequence[Example], batch_size: int, cache: Path | None = None
) -> list[dict[str, np.ndarray]]:
    """The examples with `ref_chosen` and `ref_rejected`: summed log-probabilities of the answers under the reference, float32 [].

    Args:
      reference: the frozen model, in the state in which it is the reference.
      examples: tokenised preferences, as `data.pairs.preference_examples` gives them.
      batch_size: pairs at a time.
      cache: folder that keeps the results under the hash of reference and examples; None keeps none.
    """
    params = flat_params(nnx.state(reference))
    path = None if cache is None else cache / f"{_identity(params, examples)}.npz"
    if path is not None and path.is_file():
        columns = dict(np.load(path))
    else:
        columns = _compute(reference, examples, batch_size)
        if path is not None:
            _write(path, columns)
    return [dict(example) | {name: columns[name][i] for name in REFERENCE_COLUMNS} for i, example in enumerate(examples)]


def _compute(reference: nnx.Module, examples: Sequence[Example], batch_size: int) -> dict[str, np.ndarray]:
    graph, state = nnx.split(reference)
    mesh = mesh_of(flat_params(state))
    compiled = jax.jit(lambda state, batch: answer_logps(nnx.merge(graph, state), batch)[:2])
    place = jax.device_put if mesh is None else lambda batch: place_batch(batch, mesh, leading=0)
    batches = [jax.device_get(compiled(state, place(batch))) for batch in eval_batches(examples, batch_size)]
    columns = (np.concatenate(parts)[: len(examples)] for parts in zip(*batches, strict=True))
    return dict(zip(REFERENCE_COLUMNS, columns, strict=True))


def _identity(params: dict[str, jax.Array], examples: Sequence[Example]) -> str:
    """sha256 of what the results depend on: every bit of the reference, and every token and mask."""
    sha = hashlib.sha256(digest(params).encode())
    for example in examples:
        for name in sorted(example):
            array = np.ascontiguousarray(example[name])
            sha.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return sha.hexdigest()


def _write(path: Path, columns: dict[str, np.ndarray]) -> None:
    """Atomically: another process may look for the file at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp.npz")
    np.savez(temporary, **columns)
    temporary.replace(path)
