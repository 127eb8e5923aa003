"""The compiled programs of one model, and how arrays lie on its devices."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tunix_lab.generate.beam_search import beam_search
from tunix_lab.generate.cache import bucket, grown
from tunix_lab.generate.config import CacheConfig
from tunix_lab.generate.decode import Rows, admit, decode, next_logits, prefill

# Smallest shapes; larger ones double.
MIN_PROMPT, MIN_NEW, MIN_SLOTS = 16, 16, 64


class Programs:
    """Programs that take the leaves of a model's state; each compiles when a shape is first met.

    Attributes:
      row_multiple: rows come in multiples of this, so that they split over the devices.
      prefill: (leaves, prompts) -> their cache, see `decode.prefill`.
      empty: (rows, slots, max_new, vocab) -> `Rows` that nobody uses.
      admit: see `decode.admit`; takes the rows over.
      decode: (leaves, rows, call, leave_at), see `decode.decode`; takes the rows over.
      grow: (rows, slots) -> the rows with a larger cache.
      keep: (rows, order) -> only these rows, in this order.
      copy: (prompts' cache, slots) -> the same with more slots.
      step: (leaves, last, place, cache), see `decode.next_logits`.
      beam_search: (leaves, …), see `beam_search.beam_search`.
    """

    def __init__(self, graph: nnx.GraphDef, treedef: jax.tree_util.PyTreeDef, config: CacheConfig, dtype: str, mesh: Mesh | None):
        """Prepares the programs.

        Args:
          graph: of the model.
          treedef: of its state.
          config: shape of its cache.
          dtype: of the cache.
          mesh: where the model lies: rows are split over "fsdp", heads over "tp"; None is one device.
        """
        self._mesh = mesh
        self.row_multiple = 1 if mesh is None else mesh.shape.get("fsdp", 1)

        def of_model(function, **options):
            """The function of a model as one of its leaves, which leaves its results where the next program wants them."""

            def run(leaves, *args, **static):
                model = nnx.merge(graph, jax.tree.unflatten(treedef, leaves))
                return self._split(function(model, *args, **options, **static))

            run.__name__ = function.__name__  # for profiles
            return run

        cache = {"config": config, "dtype": dtype}
        self.prefill = jax.jit(of_model(prefill, **cache))
        self.decode = jax.jit(of_model(decode), donate_argnums=1)
        self.step = jax.jit(of_model(next_logits))
        self.beam_search = jax.jit(of_model(beam_search, **cache), static_argnames=("n_beams", "slots", "max_new"))
        self.empty = self._jit(functools.partial(Rows.empty, config, dtype), static_argnums=(0, 1, 2, 3))
        self.admit = self._jit(admit, donate_argnums=0)
        self.grow = self._jit(_with_slots, static_argnums=1)
        self.keep = self._jit(lambda rows, order: jax.tree.map(lambda a: a[order], rows))
        self.copy = self._jit(grown, static_argnums=1)

    def _jit(self, function, **options):
        return jax.jit(lambda *args: self._split(function(*args)), **options)

    def _split(self, tree):
        """Rows over "fsdp" and key-value heads over "tp", where those divide."""
        if self._mesh is None:
            return tree
        return jax.tree.map(lambda a: jax.lax.with_sharding_constraint(a, NamedSharding(self._mesh, self._spec(a))), tree)

    def _spec(self, array: jax.Array) -> PartitionSpec:
        divides = lambda axis, size: axis in self._mesh.shape and size % self._mesh.shape[axis] == 0  # noqa: E731
        rows = "fsdp" if divides("fsdp", array.shape[0]) else None
        is_cache = array.ndim == 4
        return PartitionSpec(rows, "tp") if is_cache and divides("tp", array.shape[1]) else PartitionSpec(rows)


def _with_slots(rows: Rows, slots: int) -> Rows:
    return dataclasses.replace(rows, cache=grown(rows.cache, slots))


def prompt_batch(prompts: Sequence[np.ndarray], n: int) -> np.ndarray:
    """What `prefill` wants: the prompts without their last tokens, right-padded to few widths, filled up to n rows, int32."""
    out = np.zeros((n, bucket(max(map(len, prompts)) - 1, smallest=MIN_PROMPT)), np.int32)
    for row, prompt in zip(out, prompts, strict=False):
        row[: len(prompt) - 1] = prompt[:-1]
    return out
