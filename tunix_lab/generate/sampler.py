"""Generates text from prompts."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.typing import ArrayLike

from tunix_lab.data.tokenizer_adapter import TokenizerAdapter
from tunix_lab.generate import engine
from tunix_lab.generate.cache import Cache, bucket
from tunix_lab.generate.config import CacheConfig as CacheConfig
from tunix_lab.generate.decode import Call
from tunix_lab.generate.output import SamplerOutput as SamplerOutput
from tunix_lab.generate.output import left_padded, right_padded
from tunix_lab.generate.programs import MIN_NEW, MIN_SLOTS, Programs, prompt_batch
from tunix_lab.generate.sample_state import SampleState as SampleState
from tunix_lab.generate.sample_state import prompts_of
from tunix_lab.generate.sampling import SamplingParams

_OUTSIDE = np.iinfo(np.int32).max  # an id of no vocabulary


class Sampler:
    """Continues prompts with a decoder.

    Calls are padded to a few shapes (powers of two in rows, prompt and new tokens), so that lengths that vary compile little; the
    temperature and its kin are values, not shapes. Memory is taken for what a call needs, up to the cache's configured size.
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
        self._dtype, self._vocab = str(transformer.config.dtype), transformer.config.vocab_size
        self._programs = Programs(self._graph, self._treedef, cache_config, self._dtype, _mesh_of(self._leaves))

    @property
    def transformer(self) -> nnx.Module:
        """The model with its present weights."""
        return nnx.merge(self._graph, self.transformer_state)

    @property
    def transformer_state(self) -> nnx.State:
        """The model's variables; assign others of the same names, shapes and dtypes, or a ValueError says which differ."""
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
        *,
        beam_size: int | None = None,
        forbidden_tokens: Sequence[int] = (),
        pad_output: bool = False,
        return_logits: bool = False,
        max_prompt_length: int | None = None,
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
          beam_size: search with so many beams instead of sampling; the temperature then has no part.
          forbidden_tokens: ids that are never generated.
          pad_output: all rows of the output get max_generation_steps entries.
          return_logits: keep the logits from which each token was drawn.
          max_prompt_length: tokens of a prompt at most, and the width of `padded_prompt_tokens`; None is as the longest is.

        Raises:
          ValueError: a prompt is too long, also with its budget for the cache, or a parameter is out of range.
        """
        strings = [input_strings] if isinstance(input_strings, str) else list(input_strings)
        prompts = [self.tokenize(text) for text in strings]
        longest = max(map(len, prompts))
        if max_prompt_length is not None and longest > max_prompt_length:
            raise ValueError(f"a prompt has {longest} tokens, more than max_prompt_length {max_prompt_length}")
        stop_ids = list(eos_tokens) or sorted(self.tokenizer.stop_ids())
        options = {"stop_ids": stop_ids, "forbidden_tokens": forbidden_tokens}
        if beam_size is None:
            options |= {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed, "return_logits": return_logits}
            out = self.generate_tokens(prompts, max_generation_steps, **options)
        elif top_k is not None or top_p is not None or return_logits:
            raise ValueError("a beam search has no top_k, no top_p and no return_logits")
        else:
            out = self.beam_search_tokens(prompts, max_generation_steps, beam_size, **options)
        out = dataclasses.replace(out, padded_prompt_tokens=left_padded(prompts, self.tokenizer.pad_id(), max_prompt_length))
        if echo:
            out = dataclasses.replace(out, text=[prompt + text for prompt, text in zip(strings, out.text, strict=True)])
        return right_padded(out, max_generation_steps, self.tokenizer.pad_id()) if pad_output else out

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
        forbidden_tokens: Sequence[int] = (),
        return_logits: bool = False,
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
          sample_ids: one per row of the output, its identity for the random numbers, in [0, 2³²); None is its index.
          num_generations: rows per prompt; they share one prefill.
          max_rows: rows decoded side by side at most; the others wait and take the places of those that end. None is all.
          forbidden_tokens: ids that are never generated; the log-probabilities are those without this, as they are without top_k.
          return_logits: keep the logits from which each token was drawn.

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
        if max_rows is not None and max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, or None for no limit, got {max_rows}")
        groups = [ids[i : i + num_generations] for i in range(0, n_rows, num_generations)]
        requests = [engine.Request(np.asarray(prompt, np.int32), ids) for prompt, ids in zip(prompts, groups, strict=True)]
        call = Call(
            sampling=SamplingParams.of(temperature, top_k, top_p),
            stop_ids=_padded(stop_ids, -1),
            forbidden=_padded(forbidden_tokens, _OUTSIDE) if len(forbidden_tokens) else None,
            seed=np.asarray(np.random.SeedSequence().generate_state(1)[0] if seed is None else seed % 2**32, np.uint32),
        )
        vocab = self._vocab if return_logits else None
        rows = engine.run(self._programs, self._leaves, requests, call, max_new_tokens, max_rows=max_rows, vocab=vocab)
        padded = np.repeat(left_padded(prompts, self.tokenizer.pad_id()), num_generations, axis=0)
        out = self._output([row.tokens for row in rows], [row.logps for row in rows], stop_ids, padded)
        return dataclasses.replace(out, logits=[row.logits for row in rows]) if return_logits else out

    def beam_search_tokens(
        self,
        prompts: Sequence[Sequence[int] | np.ndarray],
        max_new_tokens: int,
        beam_size: int,
        *,
        stop_ids: Sequence[int],
        forbidden_tokens: Sequence[int] = (),
    ) -> SamplerOutput:
        """The best beam of each prompt, by the sum of log-probabilities; see `generate.beam_search`.

        Raises:
          ValueError: a prompt is empty, or does not fit the cache with its budget; or the beam size is below 1.
        """
        self._check_lengths(prompts, max_new_tokens)
        if beam_size < 1:
            raise ValueError(f"beam_size must be at least 1, got {beam_size}")
        n, longest = bucket(len(prompts), smallest=self._programs.row_multiple), max(map(len, prompts))
        # What fills up the batch is the first prompt again, for the search goes on until every best beam is done.
        filled = [np.asarray(prompt, np.int32) for prompt in [*prompts, *[prompts[0]] * (n - len(prompts))]]
        cache = self._programs.prefill(self._leaves, prompt_batch(filled, n))
        last, place = (np.array(x, np.int32) for x in ([ids[-1] for ids in filled], [len(ids) - 1 for ids in filled]))
        limits = (_padded(stop_ids, -1), _padded(forbidden_tokens, _OUTSIDE), np.asarray(max_new_tokens, np.int32))
        shapes = {
            "n_beams": beam_size,
            "slots": bucket(longest + max_new_tokens, smallest=MIN_SLOTS),
            "max_new": bucket(max_new_tokens, smallest=MIN_NEW),
        }
        found = jax.device_get(self._programs.beam_search(self._leaves, cache, last, place, *limits, **shapes))
        rows = [(tokens[:length], logps[:length]) for tokens, logps, length in zip(*found, strict=True)][: len(prompts)]
        tokens, logps = map(list, zip(*rows, strict=True))
        return self._output(tokens, logps, stop_ids, left_padded(prompts, self.tokenizer.pad_id()))

    def init_sample_state(self, input_ids: ArrayLike, positions: ArrayLike) -> SampleState:
        """Begins to generate by hand: the logits of every prompt's next token, and room for the cache's configured size.

        ```
        state = sampler.init_sample_state(input_ids, positions)
        for _ in range(10):
            state = sampler.step(state, state.logits.argmax(-1))
        state.tokens
        ```

        Args:
          input_ids: int [batch, seq], left-padded.
          positions: int [batch, seq], counting each row's tokens from 0, with 0 at padding.

        Raises:
          ValueError: the positions say something else, or the prompts do not fit the cache.
        """
        prompts = prompts_of(input_ids, positions)
        self._check_lengths(prompts, 0)
        slots = bucket(self.cache_config.cache_size, smallest=MIN_SLOTS)
        multiple = self._programs.row_multiple
        cache = self._programs.prefill(self._leaves, prompt_batch(prompts, -(-len(prompts) // multiple) * multiple))
        lengths = np.array([len(prompt) for prompt in prompts], np.int32)
        last = np.array([prompt[-1] for prompt in prompts], np.int32)
        logits, cache = self._step(last, lengths - 1, self._programs.copy(cache, slots))
        return SampleState(logits, lengths, np.zeros((len(prompts), 0), np.int32), cache)

    def step(self, state: SampleState, tokens: Sequence[int] | np.ndarray | jax.Array) -> SampleState:
        """The state after one more token per row.

        Args:
          state: stays as it is and may be gone on from again, with other tokens.
          tokens: int [batch], chosen from `state.logits` in whatever way.

        Raises:
          ValueError: a row has as many tokens as the cache holds.
        """
        tokens = np.asarray(tokens, np.int32)
        if (state.lengths >= self.cache_config.cache_size).any():
            raise ValueError(f"the cache of {self.cache_config.cache_size} is full: raise cache_size")
        logits, cache = self._step(tokens, state.lengths, state.cache)
        return SampleState(logits, state.lengths + 1, np.concatenate([state.tokens, tokens[:, None]], axis=1), cache)

    def _step(self, tokens: np.ndarray, place: np.ndarray, cache: Cache) -> tuple[jax.Array, Cache]:
        n_filling = jax.tree.leaves(cache)[0].shape[0] - len(tokens)
        logits, cache = self._programs.step(self._leaves, np.pad(tokens, (0, n_filling)), np.pad(place, (0, n_filling)), cache)
        return logits[: len(tokens)], cache

    def _output(self, tokens, logps, stop_ids, padded_prompts) -> SamplerOutput:
        stops = set(stop_ids)
        return SamplerOutput(
            text=[self.tokenizer.decode(row.tolist()) for row in tokens],
            tokens=tokens,
            logprobs=logps,
            finish_reason=["stop" if int(row[-1]) in stops else "length" for row in tokens],
            lengths=np.array([len(row) for row in tokens], np.int32),
            padded_prompt_tokens=padded_prompts,
        )

    def _check_lengths(self, prompts: Sequence[Sequence[int] | np.ndarray], max_new_tokens: int) -> None:
        if not prompts or min(map(len, prompts)) == 0:
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
    if not names:  # they differ in what is said about them (axes, who trains them), not in what they are
        return
    differing = [f"{name} is {given.get(name, 'absent')}, not {have.get(name, 'there')}" for name in names[:3]]
    raise ValueError(f"transformer_state is not of this model: {len(names)} variables differ: {'; '.join(differing)}")


def _mesh_of(leaves: Sequence[jax.Array]) -> Mesh | None:
    return next((leaf.sharding.mesh for leaf in leaves if isinstance(leaf.sharding, NamedSharding)), None)
