"""Answers packed into rows, so that little is computed for padding, and a prompt once for several of its answers.

A row holds prompts, each with some of its answers behind it. An answer sees its prompt and itself, and its positions go on from
its prompt's: it is computed as if it stood alone. What single tokens get is then read out by answer, so that losses see plain
arrays [answers, tokens].
"""

import dataclasses
import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tunix_lab.generate.cache import bucket
from tunix_lab.ops.masks import branching_mask, positions_from_mask
from tunix_lab.rl.experience import Batch

# Rows are longer than the longest text that may come, to hold more answers to a prompt, only up to this many tokens: the cost of
# attention grows with their square.
_LONGEST_FOR_SHARING = 512
# Where texts may be longer than this, rows are as long as the texts that came need.
_LONG = 1024
_MANY = 64  # answers
_PROMPT = ("prompt_ids", "prompt_mask")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packing:
    """Where the tokens of a batch of answers stand.

    Attributes:
      ids: int32 [rows, seq], token ids.
      positions: int32 [rows, seq], of each token in its own text.
      segments: int32 [rows, seq], a number of its own for each prompt and each answer of a row; 0 for padding.
      trunks: int32 [rows, seq], the segment of the token's prompt.
      reads: int32 [parts, reads], the places that predict an answer's token, in as many rows, taken as one, as a part has: rows
        that lie on one device are a part.
      targets: int32 [parts, reads], the tokens that are predicted there.
      first_reads: int32 [answers], where an answer's first token is predicted, as a place in `reads` taken as one row.
      prompt_ends: int32 [answers], the place of its prompt's last token, in `ids` taken as one row.
      starts: int32 [answers], the place of its first token, likewise.
    """

    ids: Int[Array, "rows seq"]
    positions: Int[Array, "rows seq"]
    segments: Int[Array, "rows seq"]
    trunks: Int[Array, "rows seq"]
    reads: Int[Array, "parts reads"]
    targets: Int[Array, "parts reads"]
    first_reads: Int[Array, " answers"]
    prompt_ends: Int[Array, " answers"]
    starts: Int[Array, " answers"]

    @property
    def attention_mask(self) -> Bool[Array, "rows seq seq"]:
        """Who sees whom."""
        return branching_mask(self.segments, self.trunks)

    def read(self, outputs: Float[Array, "rows seq size"]) -> Float[Array, "parts reads size"]:
        """What was computed at `reads`."""
        by_part = outputs.reshape(self.reads.shape[0], -1, outputs.shape[-1])
        return jnp.take_along_axis(by_part, self.reads[..., None], axis=1)

    def by_answer(self, read: Float[Array, "parts reads"], mask: Bool[Array, "answers tokens"]) -> Float[Array, "answers tokens"]:
        """What was computed for each of `reads`, in order of the answers' tokens; 0 where the mask is False."""
        return _taken(read, self.first_reads[:, None] + jnp.arange(mask.shape[1]), mask)

    def around_answers(
        self, values: Float[Array, "rows seq"], mask: Bool[Array, "answers tokens"]
    ) -> Float[Array, "answers tokens+1"]:
        """What was computed at the place before each token of the answers, and at the last; 0 behind it."""
        places = jnp.concatenate([self.prompt_ends[:, None], self.starts[:, None] + jnp.arange(mask.shape[1])], axis=1)
        return _taken(values, places, jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True))


def _taken(values: Array, places: Array, mask: Array) -> Array:
    flat = values.reshape(-1)
    return jnp.where(mask, flat[jnp.where(mask, places, 0)], 0.0)


def one_a_row(batch: Mapping[str, Array]) -> Packing:
    """The packing in which each answer has a row of its own, as the arrays of `rl.experience` have it: prompt, then answer."""
    (n, p), (_, t) = batch["prompt_ids"].shape, batch["completion_ids"].shape
    valid = jnp.concatenate([batch["prompt_mask"], batch["completion_mask"]], axis=1)
    row = jnp.arange(n, dtype=jnp.int32)
    return Packing(
        ids=jnp.concatenate([batch["prompt_ids"], batch["completion_ids"]], axis=1),
        positions=positions_from_mask(valid),
        segments=valid.astype(jnp.int32),
        trunks=jnp.ones(valid.shape, jnp.int32),
        reads=jnp.broadcast_to(jnp.arange(p - 1, p - 1 + t), (n, t)),
        targets=jnp.asarray(batch["completion_ids"]),
        first_reads=row * t,
        prompt_ends=row * (p + t) + p - 1,
        starts=row * (p + t) + p,
    )


def packed(batches: Sequence[Batch], parts: int = 1) -> list[dict[str, Any]]:
    """The batches with a `packing` each in place of their prompts; all packings have the same shape.

    The shape is one of few, so that few programs are compiled, and depends on the batches alone, so that a resumed run has the
    same: rows have room for the longest text that may come, or for several answers to a prompt, and numbers are rounded up.

    Args:
      batches: host arrays, see `rl.experience`; neighbouring rows with the same prompt share it.
      parts: of equally many rows, one for each device over which the rows are split.
    """
    texts = [_texts(batch) for batch in batches]
    prompt, completion = (max(batch[f"{part}_ids"].shape[1] for batch in batches) for part in ("prompt", "completion"))
    length = _row_length([text for some in texts for text in some], prompt, completion)
    placed = [_filled_rows(some, length) for some in texts]
    n_rows = _rounded_up(-(-max(1, *map(len, placed)) // parts), 1)
    n_read = max(_n_read(rows[part * n_rows : (part + 1) * n_rows]) for rows in placed for part in range(parts))
    # Sizes are parts of what rows with a prompt each have room for; the sum of many lengths varies little, so they may be closer.
    room = n_rows * (length - min(prompt, length // 2))
    step = -(-room // (4 if max(map(len, texts)) < _MANY else 8))
    shape = _Shape(parts, n_rows, length, max(1, -(-n_read // step)) * step)
    return [
        {name: array for name, array in batch.items() if name not in _PROMPT}
        | {"packing": _arrays(rows, len(batch["is_row"]), shape)}
        for batch, rows in zip(batches, placed, strict=True)
    ]


class _Shape(NamedTuple):
    """Of a packing."""

    parts: int
    rows: int  # of a part
    length: int
    reads: int  # of a part


class _Text(NamedTuple):
    """An answer of a batch and its prompt; `group` is the same for neighbours with the same prompt."""

    answer: int
    group: int
    prompt: np.ndarray
    ids: np.ndarray


# A row: by group, the texts that share a prompt.
_Row = dict[int, list[_Text]]


def _length(branch: Sequence[_Text]) -> int:
    """Tokens of a prompt and some of its answers."""
    return len(branch[0].prompt) + sum(len(text.ids) for text in branch)


def _texts(batch: Batch) -> list[_Text]:
    """The answers of a batch, but for those that only fill it up."""
    texts: list[_Text] = []
    for answer in np.flatnonzero(batch["is_row"]).tolist():
        prompt, ids = (batch[f"{part}_ids"][answer][batch[f"{part}_mask"][answer]] for part in ("prompt", "completion"))
        is_shared = bool(texts) and np.array_equal(texts[-1].prompt, prompt)
        texts.append(_Text(answer, texts[-1].group if is_shared else answer, prompt, ids))
    return texts


def _branches(texts: Sequence[_Text]) -> list[list[_Text]]:
    return [list(branch) for _, branch in itertools.groupby(texts, key=lambda text: text.group)]


def _n_read(rows: Sequence[_Row]) -> int:
    """Tokens of the answers in some rows."""
    return sum(len(text.ids) for row in rows for branch in row.values() for text in branch)


def _row_length(texts: Sequence[_Text], prompt: int, completion: int) -> int:
    """The tokens of a row, for prompts and completions of at most so many."""
    if prompt + completion > _LONG:
        needed = max((_length([text]) for text in texts), default=1)
        return min(prompt + completion, bucket(needed, smallest=_LONG))
    group = statistics.mode(len(branch) for branch in _branches(texts)) if texts else 1
    return _rounded_up(max(prompt + completion, min(_LONGEST_FOR_SHARING, prompt + group * completion)), 16)


def _rounded_up(number: int, step: int) -> int:
    """The next multiple of `step`, which is doubled while more than four sizes would lie within a doubling."""
    while 8 * step < number:
        step *= 2
    return -(-number // step) * step


class _Segment(NamedTuple):
    """A prompt or an answer in a row.

    Attributes:
      ids: its tokens.
      start: the place of the first of them in the row.
      position: of the first of them in its text.
      number: among the segments of the row, from 1.
      trunk: the number of its prompt.
      prompt_end: the place of its prompt's last token.
      answer: which answer of the batch it is; None for a prompt.
    """

    ids: np.ndarray
    start: int
    position: int
    number: int
    trunk: int
    prompt_end: int
    answer: int | None = None


def _segments(row: _Row) -> Iterator[_Segment]:
    """Prompts and answers in the order in which they stand in the row."""
    at, number = 0, 0
    for branch in row.values():
        prompt = branch[0].prompt
        end, trunk = at + len(prompt), number + 1
        yield _Segment(prompt, at, 0, trunk, trunk, end - 1)
        at, number = end, trunk
        for text in branch:
            number += 1
            yield _Segment(text.ids, at, len(prompt), number, trunk, end - 1, text.answer)
            at += len(text.ids)


def _arrays(rows: Sequence[_Row], n_answers: int, shape: _Shape) -> Packing:
    """The packing of one batch, as host arrays."""
    ids, positions, segments, trunks = np.zeros((4, shape.parts * shape.rows, shape.length), np.int32)
    reads, targets = np.zeros((2, shape.parts, shape.reads), np.int32)
    first_reads, prompt_ends, starts = np.zeros((3, n_answers), np.int32)
    n_read = [0] * shape.parts
    for r, row in enumerate(rows):
        part, begin = r // shape.rows, r % shape.rows * shape.length
        for segment in _segments(row):
            n = len(segment.ids)
            here = r, slice(segment.start, segment.start + n)
            ids[here], positions[here] = segment.ids, segment.position + np.arange(n)
            segments[here], trunks[here] = segment.number, segment.trunk
            if segment.answer is None:
                continue
            first = n_read[part]
            here = part, slice(first, first + n)
            targets[here], reads[here] = segment.ids, begin + segment.start - 1 + np.arange(n)
            reads[part, first : first + min(n, 1)] = begin + segment.prompt_end
            first_reads[segment.answer] = part * shape.reads + first
            prompt_ends[segment.answer] = r * shape.length + segment.prompt_end
            starts[segment.answer] = r * shape.length + segment.start
            n_read[part] += n
    return Packing(ids, positions, segments, trunks, reads, targets, first_reads, prompt_ends, starts)


def _filled_rows(texts: Sequence[_Text], length: int) -> list[_Row]:
    """Rows of at most so many tokens: long texts first, each where its prompt stands already, or where there is room at all."""
    rows: list[_Row] = []
    room: list[int] = []
    for branch in sorted(_branches(texts), key=_length, reverse=True):
        group, prompt = branch[0].group, len(branch[0].prompt)
        for text in sorted(branch, key=lambda text: len(text.ids), reverse=True):
            needed = [len(text.ids) + (0 if group in row else prompt) for row in rows]
            fits = [r for r, n in enumerate(needed) if n <= room[r]]
            r = next((r for r in fits if group in rows[r]), fits[0] if fits else len(rows))
            if r == len(rows):
                rows.append({})
                room.append(length)
                needed.append(_length([text]))
            rows[r].setdefault(group, []).append(text)
            room[r] -= needed[r]
    return rows
