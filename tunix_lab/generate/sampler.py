"""Generates text from prompts."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tunix_lab.data.tokenizer_adapter import TokenizerAdapter
from tunix_lab.generate.cache import bucket
from tunix_lab.generate.config import CacheConfig as CacheConfig
from tunix_lab.generate.decode import Generated, generate
from tunix_lab.generate.sampling import SamplingParams

# Smallest shapes of a call; larger ones double.
_MIN_PROMPT, _MIN_NEW = 16, 16


@dataclasses.dataclass(frozen=True)
class SamplerOutput:
    """One entry per prompt.

    Attributes:
      text: the generated text without special tokens (with `echo` the prompt before it).
      tokens: generated ids, the terminator included.
      logprobs: log-probability of each of `tokens` at the sampling temperature, nats.
      finish_reason: "stop" if the row ended with a stop token, "length" if the budget cut it.
    """

    text: list[str]
    tokens: list[np.ndarray]
    logprobs: list[np.ndarray]
    finish_reason: list[str]


class Sampler:
    """Continues prompts with a decoder.

    Calls are padded to a few shapes (powers of two in rows, prompt and new tokens), so that lengths that vary compile little; the
    temperature and its kin are values, not shapes.
    """

    def __init__(self, transformer: nnx.Module, tokenizer: Any, cache_config: CacheConfig):
        """Prepares sampling.

        Args:
          transformer: the model; follow its later updates with `transformer_state`.
          tokenizer: anything `TokenizerAdapter` takes.
          cache_config: the shape of its key-value cache.
        """
        self.tokenizer = TokenizerAdapter(tokenizer)
        self.cache_config = cache_config
        self._graph, self._state = nnx.split(transformer)
        self._dtype = str(transformer.config.dtype)
        self._mesh = _mesh_of(self._state)
        self._generate = jax.jit(
            functools.partial(_generate, self._graph, cache_config, self._dtype), static_argnames=("max_new",)
        )

    @property
    def transformer(self) -> nnx.Module:
        """The model with its present weights."""
        return nnx.merge(self._graph, self._state)

    @property
    def transformer_state(self) -> nnx.State:
        """The model's variables; assign to sample with others of the same shapes."""
        return self._state

    @transformer_state.setter
    def transformer_state(self, state: nnx.State) -> None:
        self._state = state

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of the model's activations and of the cache."""
        return jnp.dtype(self._dtype)

    def tokenize(self, input_string: str) -> np.ndarray:
        """Ids of a text, int32 [n], with exactly one BOS in front if the tokenizer has one."""
        ids = list(self.tokenizer.encode(input_string))
        bos = self.tokenizer.bos_id()
        if bos is not None:
            while ids and ids[0] == bos:
                ids.pop(0)
            ids.insert(0, bos)
        return np.asarray(ids, np.int32)

    def __call__(
        self,
        input_strings: str | Sequence[str],
        max_generation_steps: int,
        temperature: float | None = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        echo: bool = False,
        seed: int | None = None,
        eos_tokens: Sequence[int] = (),
    ) -> SamplerOutput:
        """Continues each string.

        Args:
          input_strings: the prompts, as the model is to see them (a chat template already applied).
          max_generation_steps: tokens to generate at most.
          temperature: 0 or None takes the most probable token.
          top_k: only the k most probable tokens; None takes all.
          top_p: only the smallest set of tokens of this total probability; None takes all.
          echo: put the prompt before the text.
          seed: of the random numbers; None draws a fresh one.
          eos_tokens: ids that end a row; none given takes the tokenizer's (EOS, and the end of a turn if it has one).

        Raises:
          ValueError: a prompt and its budget do not fit the cache, or a sampling parameter is out of range.
        """
        strings = [input_strings] if isinstance(input_strings, str) else list(input_strings)
        prompts = [self.tokenize(text) for text in strings]
        stop_ids = list(eos_tokens) or sorted(self.tokenizer.stop_ids())
        out = self.generate_tokens(
            prompts, max_generation_steps, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, stop_ids=stop_ids
        )
        return dataclasses.replace(out, text=[s + t for s, t in zip(strings, out.text, strict=True)]) if echo else out

    def generate_tokens(
        self,
        prompts: Sequence[Sequence[int] | np.ndarray],
        max_new_tokens: int,
        *,
        stop_ids: Sequence[int],
        temperature: float | None = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        sample_ids: Sequence[int] | None = None,
        num_generations: int = 1,
        max_rows: int | None = None,
    ) -> SamplerOutput:
        """Continues prompts given as token ids, exactly as they are.

        `sample_ids` identify the rows for their random numbers (default: their index); the other arguments are those of a call.
        """
        prompts = [prompt for prompt in prompts for _ in range(num_generations)]
        longest = max(map(len, prompts))
        if longest == 0 or min(map(len, prompts)) == 0:
            raise ValueError("a prompt has no tokens; begin it with BOS at least")
        if longest + max_new_tokens > self.cache_config.cache_size:
            raise ValueError(
                f"a prompt of {longest} tokens and {max_new_tokens} new ones do not fit a cache of "
                f"{self.cache_config.cache_size}: raise cache_size or shorten them"
            )
        params = SamplingParams.of(temperature, top_k, top_p)
        seed = int(np.random.SeedSequence().generate_state(1)[0] >> 1) if seed is None else seed
        rows, mask, is_row, ids = _pad(prompts, sample_ids, self._row_multiple())
        max_new = bucket(max_new_tokens, smallest=_MIN_NEW)
        placed = [self._place(array) for array in (rows, mask, is_row, ids)]
        scalars = [self._place(np.int32(seed)), jax.tree.map(self._place, params)]
        stops = self._place(np.asarray(sorted(stop_ids), np.int32))
        budget = self._place(np.int32(max_new_tokens))
        out = jax.device_get(self._generate(self._state, *placed, *scalars, stops, budget, max_new=max_new))
        return self._output(out, len(prompts))

    def _output(self, out: Generated, n: int) -> SamplerOutput:
        tokens = [out.tokens[i, : out.lengths[i]] for i in range(n)]
        return SamplerOutput(
            text=[self.tokenizer.decode(row.tolist()) for row in tokens],
            tokens=tokens,
            logprobs=[out.logps[i, : out.lengths[i]] for i in range(n)],
            finish_reason=["stop" if out.stopped[i] else "length" for i in range(n)],
        )

    def _row_multiple(self) -> int:
        return 1 if self._mesh is None else self._mesh.shape.get("fsdp", 1)

    def _place(self, array: Any) -> jax.Array:
        """Rows over "fsdp", everything else on every device."""
        if self._mesh is None:
            return jnp.asarray(array)
        rows = ("fsdp",) if np.ndim(array) and np.shape(array)[0] % self._row_multiple() == 0 else ()
        spec = PartitionSpec(*rows) if "fsdp" in self._mesh.shape else PartitionSpec()
        return jax.device_put(array, NamedSharding(self._mesh, spec))


def _generate(graph, cache_config, dtype, state, *args, max_new):
    return generate(nnx.merge(graph, state), *args, cache_config=cache_config, cache_dtype=dtype, max_new=max_new)


def _pad(prompts, sample_ids, row_multiple: int):
    """Left-pads the prompts, and fills the batch up to a power of two with rows that count as finished."""
    n_rows = bucket(len(prompts), smallest=row_multiple)
    length = bucket(max(map(len, prompts)), smallest=_MIN_PROMPT)
    rows, mask = np.zeros((n_rows, length), np.int32), np.zeros((n_rows, length), bool)
    mask[len(prompts) :, -1] = True  # a filling row attends to one token, so that nothing divides by zero
    for row, real, prompt in zip(rows, mask, prompts, strict=False):
        row[length - len(prompt) :] = prompt
        real[length - len(prompt) :] = True
    ids = np.zeros(n_rows, np.int32)
    ids[: len(prompts)] = np.arange(len(prompts)) if sample_ids is None else sample_ids
    return rows, mask, np.arange(n_rows) < len(prompts), ids


def _mesh_of(state: nnx.State) -> Mesh | None:
    for leaf in jax.tree.leaves(state):
        if isinstance(leaf.sharding, NamedSharding):
            return leaf.sharding.mesh
    return None
