"""A mistake in a spec, with the place where it was written."""

import dataclasses
import difflib
from collections.abc import Iterable
from typing import TypeAlias

from tunix_lab.errors import UserError

Fault: TypeAlias = tuple[tuple[str | int, ...], str]
"""Path of a field, and what is wrong with it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where something was written: a position in a file, a file as a whole, or an override of the command line.

    Attributes:
      source: the file as the user named it, or "--set #2".
      line: counted from 1; None for a whole file or an override.
      column: counted from 1; None likewise.
    """

    source: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        """`file:line:column`, as editors and terminals link it."""
        return self.source if self.line is None else f"{self.source}:{self.line}:{self.column}"

    @property
    def origin(self) -> str:
        """`file:line`, for saying where a value comes from."""
        return self.source if self.line is None else f"{self.source}:{self.line}"


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: its place (None for a spec made in Python), the dotted field ("" for a whole file) and what is wrong."""

    place: Place | None
    field: str
    message: str

    def __str__(self) -> str:
        return ": ".join(str(part) for part in (self.place, self.field, self.message) if part)


class SpecError(UserError):
    """A spec that cannot be used; its text has one line for each problem.

    Attributes:
      problems: every problem once, in the order in which they were found.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(dict.fromkeys(problems))
        super().__init__("\n".join(str(problem) for problem in self.problems))


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The one of `known` that `word` may be meant to be; None where none is near."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1)), None)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the nearest of `known`; empty where none is near."""
    near = nearest(word, known)
    return "" if near is None else f" (did you mean {near!r}?)"
