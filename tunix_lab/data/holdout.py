"""Keeps some of the training rows back for validation, chosen by what a row holds.

A row's place in the file does not matter, so that sorting a file, adding to it or writing it in another format moves no row from
one side to the other, and copies of a row are always on the same side. (Rows that share a prompt may still be on both.)
"""

from collections.abc import Sequence

from tunix_lab.data.rows import Row, content_hash
from tunix_lab.errors import UserError


def held_out(
    sources: Sequence[Sequence[Row]], seed: int, *, fraction: float | None = None, count: int | None = None
) -> list[list[bool]]:
    """For every row of every source whether it is held out.

    Args:
      sources: rows of each source.
      seed: another seed holds out other rows.
      fraction: share of the rows, on average: each row is held out or not whatever the others are.
      count: instead, so many rows, and copies of these.

    Raises:
      UserError: nothing would be held out, or nothing be left to train on.
    """
    hashes = [[content_hash(row, salt=str(seed)) for row in rows] for rows in sources]
    ordered = sorted(value for source in hashes for value in source)
    if count is not None and count >= len(ordered):
        raise UserError(f"data.validation: cannot hold {count} rows out of {len(ordered)}; hold out fewer")
    limit = int(fraction * 2**64) if count is None else ordered[count - 1] + 1
    chosen = [[value < limit for value in source] for source in hashes]
    number = sum(map(sum, chosen))
    if not 0 < number < len(ordered):
        what = "none" if number == 0 else "all"
        raise UserError(f"data.validation: of {len(ordered)} rows {what} would be held out; say how many, as in {{rows: 100}}")
    return chosen
