"""What a sweep tries: the fields it varies, the settings that come of them, and one trial for each setting and seed. Pure."""

import dataclasses
import itertools
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from tunix_lab.errors import UserError

Method = Literal["grid", "random", "tpe"]
_BETWEEN = re.compile(r"(?P<low>[^,]*?)\.\.(?P<high>[^,:]*)(?P<scale>:.*)?")
_PAIRS = {"{": "}", "[": "]"}
# Trials of one sweep are compared by these, so they cannot differ between them.
_FIXED = ("name", "tracking", "extends")
_DIGITS = 6  # significant ones of a drawn number: a command with it can still be read


@dataclasses.dataclass(frozen=True)
class Choices:
    """A field and the values that it may have, as they are typed."""

    field: str
    texts: tuple[str, ...]

    @property
    def is_log(self) -> bool:
        """Whether the values are numbers above zero that span at least two powers of ten."""
        numbers = [number(text) for text in self.texts]
        return None not in numbers and min(numbers) > 0 and max(numbers) >= 100 * min(numbers)


@dataclasses.dataclass(frozen=True)
class Range:
    """A field and the numbers that it may have.

    Attributes:
      field: its dotted name.
      low: the smallest value.
      high: the largest one.
      is_log: whether values are spread evenly over powers instead of over differences.
      is_integer: whether values are whole.
    """

    field: str
    low: float
    high: float
    is_log: bool
    is_integer: bool

    def text(self, value: float) -> str:
        """A value inside, as it is typed in a command."""
        if self.is_integer:
            return str(min(max(round(value), int(self.low)), int(self.high)))
        return repr(min(max(float(f"{value:.{_DIGITS}g}"), self.low), self.high))


Axis: TypeAlias = Choices | Range


@dataclasses.dataclass(frozen=True)
class Space:
    """What a sweep was asked to try.

    Attributes:
      method: "grid" takes every combination; "random" draws settings; "tpe" chooses them by what earlier ones gave.
      axes: the fields, as they were given (`field=…`).
      settings: number of settings to draw; None for a grid.
      seeds: trials for each setting.
      first_seed: seed of the first of them, the others count on from it; also that of the draws.
    """

    method: Method
    axes: tuple[str, ...]
    settings: int | None = None
    seeds: int = 1
    first_seed: int = 0

    def parsed(self) -> tuple[Axis, ...]:
        """The fields with their values. Raises UserError with one line for each mistake."""
        problems: list[str] = []
        axes = [axis for text in self.axes if (axis := _parsed(text, self.method, problems)) is not None]
        names = [axis.field for axis in axes]
        problems += [f"--{self.method} {name}: given twice" for name in dict.fromkeys(names) if names.count(name) > 1]
        if "seed" in names and self.seeds > 1:
            problems.append(f"--{self.method} seed: --seeds {self.seeds} varies it already")
        if (self.settings is None) != (self.method == "grid"):
            problems.append(
                "--trials: a grid tries every combination"
                if self.method == "grid"
                else f"--{self.method} needs --trials N, the number of settings to try"
            )
        if not axes and not problems and self.seeds == 1:
            problems.append("nothing to sweep: give --grid field=a,b or --seeds N")
        if problems:
            raise UserError("\n".join(problems))
        return tuple(axes)

    def drawn(self) -> list[dict[str, str]]:
        """The settings of a grid or of random draws, each a text by field; [] for "tpe", which chooses one at a time."""
        axes = self.parsed()
        match self.method:
            case "grid":
                texts = itertools.product(*(axis.texts for axis in axes))
                return [dict(zip((axis.field for axis in axes), values, strict=True)) for values in texts]
            case "random":
                # Each setting has a generator of its own: more trials later begin with the same ones.
                return [_draw(axes, random.Random(f"{self.first_seed} {index}")) for index in range(self.settings)]
        return []

    def corners(self) -> list[dict[str, str]]:
        """Settings that show whether every value is allowed at all: each choice and each bound, the others at their first."""
        options = {axis.field: axis.texts if isinstance(axis, Choices) else _bounds(axis) for axis in self.parsed()}
        first = {field: texts[0] for field, texts in options.items()}
        return [first | {field: text} for field, texts in options.items() for text in texts] or [{}]


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
      number: its place among the trials, from 0.
      setting: number of its setting; the trials of a setting differ in their seed alone.
      values: text by field.
      seed: of the run; None leaves it to the spec or to `values`.
    """

    number: int
    setting: int
    values: dict[str, str]
    seed: int | None

    def overrides(self) -> list[str]:
        """What `--set` gets."""
        seed = [] if self.seed is None else [f"seed={self.seed}"]
        return [*(f"{field}={text}" for field, text in self.values.items()), *seed]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Trial":
        """The trial that `dataclasses.asdict` wrote."""
        return cls(**value)


def trials_of(space: Space, settings: Sequence[Mapping[str, str]], first: int = 0) -> list[Trial]:
    """The trials of `settings`, which are the settings from number `first` on."""
    return [
        Trial(setting * space.seeds + index, setting, dict(values), None if "seed" in values else space.first_seed + index)
        for setting, values in enumerate(settings, start=first)
        for index in range(space.seeds)
    ]


def number(text: str) -> float | None:
    """The finite number that `text` is; None if it is none."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def split(text: str) -> list[str]:
    """The parts between commas that stand in no bracket and in no quotes."""
    parts, depth, quote, begin = [], [], "", 0
    for index, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in _PAIRS:
            depth.append(_PAIRS[character])
        elif depth and character == depth[-1]:
            depth.pop()
        elif character == "," and not depth:
            parts.append(text[begin:index].strip())
            begin = index + 1
    return [*parts, text[begin:].strip()]


def _parsed(text: str, method: Method, problems: list[str]) -> Axis | None:
    field, equals, values = (part.strip() for part in text.partition("="))
    option = f"--{method} {field}"
    if not equals or not all(field.split(".")):
        problems.append(f"--{method}: must look like section.field=a,b, got {text!r}")
        return None
    if field.partition(".")[0] in _FIXED:
        problems.append(f"{option}: trials are compared by it, so it cannot vary; use --set for all of them")
        return None
    between = _BETWEEN.fullmatch(values)
    if between is not None:
        return _range(option, field, method, between, problems)
    texts = split(values)
    faults = [f"{option}: an empty value in {values!r}"] if "" in texts else []
    faults += [f"{option}: {text} twice" for text in dict.fromkeys(texts) if texts.count(text) > 1 and text]
    problems += faults
    return None if faults else Choices(field, tuple(texts))


def _range(option: str, field: str, method: Method, between: re.Match[str], problems: list[str]) -> Range | None:
    low, high, scale = number(between["low"]), number(between["high"]), between["scale"]
    fault = None
    if method == "grid":
        fault = f"a grid takes values (a,b,c), not the range {between[0]}; for ranges there are --random and --tpe"
    elif low is None or high is None:
        fault = f"a range is low..high of two numbers, got {between[0]!r}"
    elif scale not in (None, ":log"):
        fault = f"a range may end in :log, got {scale!r}"
    elif low >= high:
        fault = f"the range {between[0]} is empty: its low end must be below its high end"
    elif scale and low <= 0:
        fault = f"a range with :log must begin above 0, got {between['low']}"
    if fault is not None:
        problems.append(f"{option}: {fault}")
        return None
    is_integer = all(re.fullmatch(r"[+-]?\d+", between[end].strip()) for end in ("low", "high"))
    return Range(field, low, high, scale is not None, is_integer)


def _bounds(axis: Range) -> tuple[str, str]:
    return axis.text(axis.low), axis.text(axis.high)


def _draw(axes: Sequence[Axis], random_numbers: random.Random) -> dict[str, str]:
    return dict(_drawn(axes, random_numbers))


def _drawn(axes: Sequence[Axis], random_numbers: random.Random) -> Iterator[tuple[str, str]]:
    for axis in axes:
        match axis:
            case Choices(field=field, texts=texts):
                yield field, random_numbers.choice(texts)
            case Range(field=field, is_integer=True, is_log=False):
                yield field, str(random_numbers.randint(int(axis.low), int(axis.high)))
            case Range(field=field, is_log=True):
                yield field, axis.text(math.exp(random_numbers.uniform(math.log(axis.low), math.log(axis.high))))
            case Range(field=field):
                yield field, axis.text(random_numbers.uniform(axis.low, axis.high))
