"""Generations from held-out prompts while a model trains, scored if the spec names a scorer."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from tunix_lab.data.tokenizer import Tokenizer
from tunix_lab.errors import UserError
from tunix_lab.generate.sampler import CacheConfig, Sampler, SamplerOutput
from tunix_lab.lab.prompts import Prompt
from tunix_lab.models.decoder import Decoder

# (prompts, completions, **columns) -> one score per completion.
Scorer = Callable[..., Sequence[float]]


class Samples:
    """Answers the same prompts again and again, so that answers of different steps and runs stand side by side."""

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        scorer: Scorer | None = None,
    ):
        """Prepares the sampler.

        Args:
          model: the decoder; later weights come with each call.
          tokenizer: with a chat template.
          prompts: what to answer.
          max_new_tokens: of each answer.
          temperature: 0 takes the likeliest token.
          seed: of the random numbers.
          scorer: called with prompts, completions and the rows' other columns.
        """
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._ids = [prompt.ids for prompt in prompts]
        self._options = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
        self._scorer = scorer
        self._sampler = make_sampler(model, tokenizer, max(map(len, self._ids)) + max_new_tokens)

    def generate(self, state: nnx.State) -> tuple[list[dict[str, Any]], float | None]:
        """Answers with the weights of `state`: rows for the samples table, and the mean score (None without a scorer)."""
        self._sampler.transformer_state = state
        out = self._sampler.generate_tokens(self._ids, stop_ids=sorted(self._tokenizer.stop_ids), **self._options)
        scores = self._score(out)
        table = []
        for i, prompt in enumerate(self._prompts):
            entry = {"id": str(prompt.row.get("id", i)), "completion": out.text[i], "prompt": prompt.text}
            entry |= {"reference": prompt.reference, "tokens": len(out.tokens[i]), "finish_reason": out.finish_reason[i]}
            table.append(entry if scores is None else entry | {"score": scores[i]})
        return table, None if scores is None else float(np.mean(scores))

    def _score(self, out: SamplerOutput) -> list[float] | None:
        if self._scorer is None:
            return None
        rows = [prompt.row for prompt in self._prompts]
        shared = set.intersection(*(set(row) for row in rows)) - {"prompt", "completion", "id"}
        columns = {name: [row[name] for row in rows] for name in sorted(shared)}
        scores = [float(score) for score in self._scorer([prompt.text for prompt in self._prompts], out.text, **columns)]
        if len(scores) != len(out.text) or not np.isfinite(scores).all():
            raise UserError(f"samples.scorer gave {scores} for {len(out.text)} completions; it must give one finite number each")
        return scores


def make_sampler(model: Decoder, tokenizer: Tokenizer, cache_size: int) -> Sampler:
    """A sampler whose cache holds `cache_size` positions."""
    config = model.config
    return Sampler(model, tokenizer, CacheConfig(cache_size, config.num_layers, config.num_kv_heads, config.head_dim))


def load_scorer(reference: str | None, home: Path) -> Scorer | None:
    """The function that `package.module:function` names; None for None."""
    from tunix_lab.spec import import_function

    return None if reference is None else import_function(reference, home)
