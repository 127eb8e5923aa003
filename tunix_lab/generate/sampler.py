"""Generates text from prompts."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from tunix_lab.data.tokenizer_adapter import TokenizerAdapter
from tunix_lab.generate.cache import bucket
from tunix_lab.generate.config import CacheConfig as CacheConfig
from tunix_lab.generate.decode import Call
from tunix_lab.generate.engine import Engine, Request
from tunix_lab.generate.sampling import SamplingParams


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
        self._graph, state = nnx.split(transformer)
        # Flat, because a call need not walk the model each time.
        self._leaves, self._treedef = jax.tree.flatten(state)
        self._dtype = str(transformer.config.dtype)
        self._engine = Engine(self._graph, self._treedef, cache_config, self._dtype, _mesh_of(self._leaves))

    @property
    def transformer(self) -> nnx.Module:
        """The model with its present weights."""
        return nnx.merge(self._graph, self.transformer_state)

    @property
    def transformer_state(self) -> nnx.State:
        """The model's variables; assign to sample with others of the same shapes."""
        return jax.tree.unflatten(self._treedef, self._leaves)

    @transformer_state.setter
    def transformer_state(self, state: nnx.State) -> None:
        leaves, treedef = jax.tree.flatten(state)
        _check_same(self._leaves, self._treedef, leaves, treedef)
        self._leaves = leaves

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
        sample_ids: Sequence[int] | np.ndarray | None = None,
        num_generations: int = 1,
        max_rows: int | None = None,
    ) -> SamplerOutput:
        """Continues prompts given as token ids, exactly as they are.

        A row's tokens follow from its prompt, the seed, its sample id and the sampling parameters: not from the other rows, nor
        from how many are decoded side by side.

        Args:
          prompts: token ids, at least one each.
          max_new_tokens: tokens to generate at most.
          stop_ids: ids that end a row.
          temperature: 0 or None takes the most probable token.
          top_k: only the k most probable tokens; None takes all.
          top_p: only the smallest set of tokens of this total probability; None takes all.
          seed: of the random numbers; None draws a fresh one.
          sample_ids: one per row of the output, its identity for the random numbers; None is its index.
          num_generations: rows per prompt; they share one prefill.
          max_rows: rows decoded side by side at most; the others wait and take the places of those that end. None is all.

        Returns:
          One entry per row: the rows of the first prompt, those of the second, …

        Raises:
          ValueError: a prompt is empty, or does not fit the cache with its budget; or a parameter is out of range.
        """
        self._check_lengths(prompts, max_new_tokens)
        n_rows = len(prompts) * num_generations
        ids = range(n_rows) if sample_ids is None else sample_ids
        if num_generations < 1 or len(ids) != n_rows:
            raise ValueError(f"{len(prompts)} prompts with num_generations {num_generations} do not make {len(ids)} sample_ids")
        groups = [ids[i : i + num_generations] for i in range(0, n_rows, num_generations)]
        requests = [Request(np.asarray(prompt, np.int32), group) for prompt, group in zip(prompts, groups, strict=True)]
        call = Call(
            sampling=SamplingParams.of(temperature, top_k, top_p),
            stop_ids=_padded(stop_ids, -1),
            forbidden=None,
            seed=np.asarray(np.random.SeedSequence().generate_state(1)[0] if seed is None else seed % 2**32, np.uint32),
        )
        rows = self._engine.run(self._leaves, requests, call, max_new_tokens, max_rows=max_rows)
        return SamplerOutput(
            text=[self.tokenizer.decode(row.tokens.tolist()) for row in rows],
            tokens=[row.tokens for row in rows],
            logprobs=[row.logps for row in rows],
            finish_reason=["stop" if row.tokens[-1] in set(stop_ids) else "length" for row in rows],
        )

    def _check_lengths(self, prompts: Sequence[Sequence[int] | np.ndarray], max_new_tokens: int) -> None:
        if min(map(len, prompts)) == 0:
            raise ValueError("a prompt has no tokens; begin it with BOS at least")
        longest = max(map(len, prompts))
        if longest + max_new_tokens > self.cache_config.cache_size:
            raise ValueError(
                f"a prompt of {longest} tokens and {max_new_tokens} new ones do not fit a cache of "
                f"{self.cache_config.cache_size}: raise cache_size or shorten them"
            )


def _padded(ids: Sequence[int], filler: int) -> np.ndarray:
    """The ids, filled up to few sizes."""
    out = np.full(bucket(len(ids), smallest=8), filler, np.int32)
    out[: len(ids)] = sorted(ids)
    return out


def _check_same(leaves: Sequence[jax.Array], treedef: Any, new: Sequence[jax.Array], new_treedef: Any) -> None:
    """Refuses a state that is not of the model's shapes, and says where they differ."""
    if treedef == new_treedef and all(a.shape == b.shape and a.dtype == b.dtype for a, b in zip(leaves, new, strict=True)):
        return
    describe = lambda leaves, treedef: {  # noqa: E731
        jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(jax.tree.unflatten(treedef, leaves))
    }
    have, given = describe(leaves, treedef), describe(new, new_treedef)
    names = [name for name in {**have, **given} if have.get(name) != given.get(name)]
    differing = [f"{name} is {given.get(name, 'absent')}, not {have.get(name, 'there')}" for name in names[:3]]
    raise ValueError(f"transformer_state is not of this model: {len(names)} variables differ: {'; '.join(differing)}")


def _mesh_of(leaves: Sequence[jax.Array]) -> Mesh | None:
    return next((leaf.sharding.mesh for leaf in leaves if isinstance(leaf.sharding, NamedSharding)), None)
