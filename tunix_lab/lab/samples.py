"""Generations from held-out prompts while a model trains, scored if the spec names a scorer."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from tunix_lab.data.chat import render_prompt
from tunix_lab.data.rows import Row
from tunix_lab.data.tokenizer import Tokenizer
from tunix_lab.errors import UserError
from tunix_lab.generate.sampler import CacheConfig, Sampler, SamplerOutput
from tunix_lab.models.decoder import Decoder

# (prompts, completions, **columns) -> one score per completion.
Scorer = Callable[..., Sequence[float]]


class Samples:
    """Answers the same prompts again and again, so that answers of different steps and runs stand side by side."""

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        rows: Sequence[Row],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        scorer: Scorer | None = None,
    ):
        """Prepares the prompts.

        Args:
          model: the decoder; later weights come with each call.
          tokenizer: with a chat template.
          rows: dataset rows with a prompt (or only text, whose first half is the prompt then).
          max_new_tokens: of each answer.
          temperature: 0 takes the likeliest token.
          seed: of the random numbers.
          scorer: called with prompts, completions and the rows' other columns.
        """
        self._tokenizer = tokenizer
        self._rows = rows
        self._prompts = [_prompt_text(row) for row in rows]
        self._ids = [_prompt_ids(row, tokenizer) for row in rows]
        self._options = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
        self._scorer = scorer
        self._sampler = make_sampler(model, tokenizer, max(map(len, self._ids)) + max_new_tokens)

    def generate(self, state: nnx.State) -> tuple[list[dict[str, Any]], float | None]:
        """Answers with the weights of `state`: rows for the samples table, and the mean score (None without a scorer)."""
        self._sampler.transformer_state = state
        out = self._sampler.generate_tokens(self._ids, stop_ids=sorted(self._tokenizer.stop_ids), **self._options)
        scores = self._score(out)
        table = []
        for i, row in enumerate(self._rows):
            entry = {"id": str(row.get("id", i)), "completion": out.text[i], "prompt": self._prompts[i]}
            entry |= {"reference": _reference(row), "tokens": len(out.tokens[i]), "finish_reason": out.finish_reason[i]}
            table.append(entry if scores is None else entry | {"score": scores[i]})
        return table, None if scores is None else float(np.mean(scores))

    def _score(self, out: SamplerOutput) -> list[float] | None:
        if self._scorer is None:
            return None
        shared = set.intersection(*(set(row) for row in self._rows)) - {"prompt", "completion", "id"}
        columns = {name: [row[name] for row in self._rows] for name in sorted(shared)}
        scores = [float(score) for score in self._scorer(self._prompts, out.text, **columns)]
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


def _prompt_text(row: Row) -> str:
    if "text" in row:
        words = row["text"].split(" ")
        return " ".join(words[: max(1, len(words) // 2)])
    if "messages" in row:
        return row["messages"][-2]["content"]
    return row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]


def _prompt_ids(row: Row, tokenizer: Tokenizer) -> np.ndarray:
    if "text" in row:
        return np.asarray([tokenizer.bos_id, *tokenizer.encode(_prompt_text(row))], np.int32)
    return render_prompt(tokenizer, row["messages"][:-1] if "messages" in row else row["prompt"])


def _reference(row: Row) -> str:
    """What the row gives as the right answer."""
    if "text" in row:
        return row["text"]
    if "messages" in row:
        return row["messages"][-1]["content"]
    return str(row.get("completion", row.get("chosen", row.get("answer", ""))))
