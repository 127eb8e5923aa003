"""What a model answers to a few fixed questions, and the comparison of two such sets of answers: the checks of an export in JAX.

Everything is computed at the highest precision that the device has for float32 products, so that a difference is one of weights.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tunix_lab.data.chat import render_ids
from tunix_lab.data.chat_template import ChatTemplate
from tunix_lab.data.tokenizer import Tokenizer
from tunix_lab.models.config import ModelConfig
from tunix_lab.models.decoder import Decoder
from tunix_lab.sft.train_state import Params, digest, flat_params

FLOAT32_TOLERANCE = 1e-4
"""Absolute, of logits: the same sums in another order differ by about 1e-6 of their size, a wrong weight or feature by 1e-2."""

NEW_TOKENS = 16
TEXTS = ("Hello, world!", "  two  spaces\n\ttab", "naïve café – 東京 🙂", "x = 3.14159; f(x) < 42")
_QUESTIONS = ("What is 12 + 30?", "Name three colours.", "Why is the sky blue? Answer in one sentence.")
_TURNS = ("How many apples are 2 apples and 3 apples?", "5", "And one more?")
_ROWS, _LENGTH = 3, 24


@dataclasses.dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
      name: what was compared.
      passed: None: not compared, or measured only; `note` says why.
      value: the largest difference, or how many differ.
      tolerance: the largest value that passes; None where `value` must be larger than nothing, see `note`.
      note: for people.
    """

    name: str
    passed: bool | None
    value: float | None = None
    tolerance: float | None = None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Chat:
    """Messages, what the template is given besides, and the ids of the prompt for the next turn."""

    messages: list[dict[str, str]]
    variables: dict[str, str]
    ids: list[int]


@dataclasses.dataclass(frozen=True)
class Questions:
    """What models are asked.

    Attributes:
      rows: token ids whose logits are compared: random ones, then the prompts.
      prompts: those of the rows that are also continued, greedily.
      stop_ids: what ends a continuation.
    """

    rows: list[list[int]]
    prompts: list[list[int]]
    stop_ids: list[int]


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a model says: logits [tokens of all rows, vocab] in float32, and the continuation of each prompt."""

    logits: np.ndarray
    greedy: list[list[int]]


def make_questions(config: ModelConfig, tokenizer: Tokenizer | None, stop_ids: Sequence[int]) -> Questions:
    """Seeded random tokens, and prompts: chats where there is a template, else texts, else the random tokens."""
    known = config.vocab_size if tokenizer is None else tokenizer.vocab_size
    plain = np.array(sorted(set(range(known)) - (set() if tokenizer is None else tokenizer.special_ids)))
    random = np.random.default_rng(0).choice(plain, (_ROWS, min(_LENGTH, config.max_positions - NEW_TOKENS))).tolist()
    if tokenizer is None:
        prompts = random
    elif tokenizer.chat_template is None:
        bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        prompts = [[*bos, *tokenizer.encode(text)] for text in TEXTS]
    else:
        prompts = [chat.ids for chat in render_chats(tokenizer)]
    return Questions(random if tokenizer is None else [*random, *prompts], prompts, sorted(stop_ids))


def render_chats(tokenizer: Tokenizer) -> list[Chat]:
    """A few chats; [] without a template. A template that writes the date is given a fixed one."""
    if tokenizer.chat_template is None:
        return []
    dated = "date_string" in ChatTemplate.compile(tokenizer.chat_template).names
    variables = {"date_string": "26 Jul 2024"} if dated else {}
    chats = [[{"role": "user", "content": question}] for question in _QUESTIONS]
    chats.append([{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(_TURNS)])
    ids = [render_ids(tokenizer, messages, add_generation_prompt=True, **variables) for messages in chats]
    return [Chat(messages, variables, row) for messages, row in zip(chats, ids, strict=True)]


def ask(model: Decoder, questions: Questions) -> Answers:
    """The answers of a model."""
    graph, state = nnx.split(model)
    width = max(map(len, questions.rows)) + NEW_TOKENS
    with jax.default_matmul_precision("highest"):
        logits = np.asarray(_logits(graph, state, _padded(questions.rows, width)))
        greedy = _continue(graph, state, questions, width)
    real = [row[: len(tokens)] for row, tokens in zip(logits, questions.rows, strict=True)]
    return Answers(np.concatenate(real), greedy)


def _continue(graph: nnx.GraphDef, state: nnx.State, questions: Questions, width: int) -> list[list[int]]:
    """The likeliest token again and again, without a cache: what comes after a row's end changes nothing before it."""
    rows = [list(prompt) for prompt in questions.prompts]
    for _ in range(NEW_TOKENS):
        last = np.array([len(row) - 1 for row in rows], np.int32)
        chosen = np.asarray(_likeliest(graph, state, _padded(rows, width), last)).tolist()
        rows = [row if _has_ended(row, prompt, questions.stop_ids) else [*row, token]
                for row, prompt, token in zip(rows, questions.prompts, chosen, strict=True)]  # fmt: skip
    return [row[len(prompt) :] for row, prompt in zip(rows, questions.prompts, strict=True)]


def _has_ended(row: Sequence[int], prompt: Sequence[int], stop_ids: Sequence[int]) -> bool:
    return len(row) > len(prompt) and row[-1] in stop_ids


def _padded(rows: Sequence[Sequence[int]], width: int) -> np.ndarray:
    return np.array([[*row, *[0] * (width - len(row))] for row in rows], np.int32)


@functools.partial(jax.jit, static_argnums=0)
def _logits(graph: nnx.GraphDef, state: nnx.State, tokens: jax.Array) -> jax.Array:
    return nnx.merge(graph, state)(tokens, _positions(tokens))[0]


@functools.partial(jax.jit, static_argnums=0)
def _likeliest(graph: nnx.GraphDef, state: nnx.State, tokens: jax.Array, last: jax.Array) -> jax.Array:
    model = nnx.merge(graph, state)
    hidden, _ = model(tokens, _positions(tokens), skip_lm_head=True)
    ends = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
    return jnp.argmax(jnp.einsum("bd,vd->bv", ends, model.head(), preferred_element_type=jnp.float32), axis=-1)


def _positions(tokens: jax.Array) -> jax.Array:
    return jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)


# ---- comparisons ---------------------------------------------------------------------------------------------------------


def largest_difference(one: Answers, other: Answers) -> float:
    """Of the logits; NaN if either has one."""
    return float(np.abs(one.logits - other.logits).max())


def tensor_digests(model: Decoder) -> dict[str, str]:
    """sha256 of every parameter by dotted path, dtype and shape included."""
    return {name: digest({name: array}) for name, array in flat_params(nnx.state(model)).items()}


def compare_tensors(expected: Mapping[str, str], got: Mapping[str, str]) -> Check:
    """Whether all parameters are the same bytes."""
    differing = sorted(name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name))
    shown = ", ".join(differing[:3]) + (", …" if len(differing) > 3 else "")
    return Check(
        "tensors",
        not differing,
        len(differing),
        0,
        f"differ: {shown}" if differing else f"{len(expected)} parameters, bit for bit",
    )


def compare_config(expected: ModelConfig, got: ModelConfig) -> Check:
    """Whether config.json describes the same decoder."""
    fields = [field.name for field in dataclasses.fields(expected)]
    differing = [name for name in fields if dataclasses.asdict(expected)[name] != dataclasses.asdict(got).get(name)]
    same = not differing and type(expected) is type(got)
    return Check("config", same, len(differing), 0, f"differ: {', '.join(differing)}" if differing else f"{len(fields)} fields")


def compare_logits(name: str, expected: Answers, got: Answers, dtype: str) -> Check:
    """Whether logits agree: in float32 to its rounding; in other dtypes exactly, since both ran the same program."""
    tolerance = FLOAT32_TOLERANCE if dtype == "float32" else 0.0
    reason = "float32: sums in another order" if tolerance else f"{dtype}: the same program on the source cast to it"
    value = largest_difference(expected, got)
    return Check(name, value <= tolerance, value, tolerance, f"{expected.logits.size} logits; {reason}")


def compare_greedy(expected: Answers, got: Answers) -> Check:
    """Whether every prompt is continued by the same tokens."""
    differing = sum(a != b for a, b in zip(expected.greedy, got.greedy, strict=True))
    return Check("greedy", differing == 0, differing, 0, f"of {len(expected.greedy)} prompts, up to {NEW_TOKENS} tokens each")


def check_effect(name: str, model: Answers, base: Answers) -> Check:
    """Whether the model is another one than its base: further from it than rounding could bring two equal ones."""
    value = largest_difference(model, base)
    note = f"of logits to those of the base: must be more than {FLOAT32_TOLERANCE:g}"
    return Check(name, value > FLOAT32_TOLERANCE, value, None, note)


def check_merge(merged: Params, final: Params) -> Check:
    """Whether base and adapter give the weights that the run left.

    Both add the update in float32 and round once. Machines sum in different orders, so that a value next to the edge between two
    roundings may fall to either side: one unit of the last place, and in float32 the few that the sum itself can be off.
    """
    tolerance = max(1e-6, *(float(jnp.finfo(array.dtype).eps) for array in final.values()))
    value = max(_relative(merged[name], final[name]) for name in final)
    note = "of weights, by the largest of their tensor"
    return Check("base + adapter = weights", value <= tolerance, value, tolerance, note)


def _relative(one: jax.Array, other: jax.Array) -> float:
    one, other = np.asarray(one, np.float32), np.asarray(other, np.float32)
    return float(np.abs(one - other).max() / max(np.abs(other).max(), np.finfo(np.float32).tiny))


def compare_tokenizers(expected: Tokenizer | None, got: Tokenizer | None) -> Check:
    """Whether texts and chats have the same ids, and the same tokens begin, pad and end."""
    if expected is None or got is None:
        return Check(
            "tokenizer", None if expected is got else False, note="the source has none" if expected is None else "missing"
        )
    differing = [name for name, value in _facts(expected).items() if _facts(got)[name] != value]
    return Check(
        "tokenizer",
        not differing,
        len(differing),
        0,
        f"differ: {', '.join(differing)}" if differing else "ids, chats, special tokens",
    )


def _facts(tokenizer: Tokenizer) -> dict[str, Any]:
    chats = render_chats(tokenizer)
    return {
        **{repr(text): tokenizer.encode(text) for text in TEXTS},
        **{f"chat {i + 1}": chat.ids for i, chat in enumerate(chats)},
        "chat template": tokenizer.template_digest,
        "bos": tokenizer.bos_id,
        "eos": tokenizer.eos_id,
        "pad": tokenizer.pad_id,
        "stop ids": sorted(tokenizer.stop_ids),
    }
