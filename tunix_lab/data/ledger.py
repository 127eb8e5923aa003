"""Accounts for every row and token that goes into a dataset, and decides about rows that are too long.

Tokens in = trained + context + cut + dropped, for each source of each split. Nothing is shortened or left out unless the spec
says so; packing moves tokens together and changes none of these counts.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Literal

from tunix_lab.errors import UserError

Overlong = Literal["error", "drop", "truncate"]
"""What to do with a row that is too long: stop with a message, leave it out, or cut its end. Nothing ever cuts a prompt."""


@dataclasses.dataclass
class Ledger:
    """What became of the rows and tokens of one source of a split.

    Attributes:
      split: name of the split, or of one of its sources ("train.0").
      rows_in: rows read.
      rows_duplicate: rows whose content an earlier row has too; they are kept.
      rows_cut: rows kept with their end cut off.
      rows_dropped: rows left out because they were too long.
      tokens_in: tokens of all rows before any limit.
      trained: kept tokens that the loss counts.
      context: kept tokens that are only read.
      cut: tokens cut off the end of kept rows.
      dropped: tokens of rows left out.
      kept_rows: for each example, the number of its row.
    """

    split: str
    rows_in: int = 0
    rows_duplicate: int = 0
    rows_cut: int = 0
    rows_dropped: int = 0
    tokens_in: int = 0
    trained: int = 0
    context: int = 0
    cut: int = 0
    dropped: int = 0
    kept_rows: list[int] = dataclasses.field(default_factory=list)

    def keep(self, *, tokens: int, trained: int, context: int) -> None:
        """Books the next row, of `tokens` tokens, of which `trained` and `context` are kept and the rest was cut."""
        self.kept_rows.append(self.rows_in)
        self.rows_in += 1
        self.tokens_in += tokens
        self.trained += trained
        self.context += context
        cut = tokens - trained - context
        self.cut += cut
        self.rows_cut += cut > 0

    def drop(self, *, tokens: int) -> None:
        """Books the next row, of `tokens` tokens, as left out."""
        self.rows_in += 1
        self.rows_dropped += 1
        self.tokens_in += tokens
        self.dropped += tokens

    def summary(self) -> dict[str, int]:
        """Every count by name."""
        counts = dataclasses.asdict(self)
        return {name: count for name, count in counts.items() if name not in ("split", "kept_rows")}


def total(ledgers: Sequence[Ledger], split: str, rows_duplicate: int) -> Ledger:
    """The ledger of a split with all its sources, whose rows are numbered one source after the other.

    Copies are counted anew, since a row may be in two sources.
    """
    counts = {name: sum(ledger.summary()[name] for ledger in ledgers) for name in Ledger(split).summary()}
    first_rows = itertools.accumulate((ledger.rows_in for ledger in ledgers), initial=0)
    kept = [first + row for first, ledger in zip(first_rows, ledgers, strict=False) for row in ledger.kept_rows]
    return Ledger(split, **counts | {"rows_duplicate": rows_duplicate}, kept_rows=kept)


def check_lengths(lengths: Sequence[int], places: Sequence[str], limit: int, *, setting: str, what: str, choices: str) -> None:
    """Raises UserError if any of `lengths` exceeds `limit`, with how many, the longest, its place, and what would help.

    Args:
      lengths: tokens of each row.
      places: where each row stands.
      limit: most tokens allowed.
      setting: name of the limit in the spec.
      what: what is measured, plural, such as "prompts".
      choices: values of data.overlong that would accept such rows.
    """
    over = sum(length > limit for length in lengths)
    if over:
        longest = max(range(len(lengths)), key=lengths.__getitem__)
        raise UserError(
            f"{over} of {len(lengths)} {what} are longer than {setting} = {limit}; the longest has {lengths[longest]} tokens "
            f"({places[longest]}). Set {setting} to {lengths[longest]} to fit all, or choose data.overlong: {choices}"
        )
