"""One call of a reward function, checked; and the search for the answers that a failing call fails for. No jax in here."""

import dataclasses
import math
import numbers
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

RewardFn = Callable[..., Sequence[float]]
"""Called as `fn(prompts=…, completions=…, **columns)`, all of them lists with one entry per answer; gives one number for each."""

_MOST_CHARACTERS = 300
_LARGEST = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True)
class Answers:
    """What is to be rewarded; the answers to one prompt stand side by side.

    Attributes:
      prompts: text of each answer's prompt.
      completions: text of each answer.
      columns: the other columns of the prompts' rows, one entry per answer.
      group_size: answers to each prompt.
    """

    prompts: Sequence[str]
    completions: Sequence[str]
    columns: Mapping[str, Sequence[Any]]
    group_size: int

    def arguments(self, rows: Iterable[int]) -> dict[str, list[Any]]:
        """What a function is called with for these answers: lists of its own, which it may change."""
        rows = list(rows)
        named = {"prompts": self.prompts, "completions": self.completions, **self.columns}
        return {name: [values[row] for row in rows] for name, values in named.items()}


@dataclasses.dataclass(frozen=True)
class Call:
    """A call that is to be made: the number of the function, and those of the answers."""

    function: int
    rows: Sequence[int]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a call.

    Attributes:
      values: one number for each answer; NaN where there is a fault.
      faults: what is wrong with single values, by their place in the call.
      failure: why there are no values at all; None if there are.
      error: the exception behind the failure, if it was raised in this process.
    """

    values: Sequence[float] = ()
    faults: Mapping[int, str] = dataclasses.field(default_factory=dict)
    failure: str | None = None
    error: BaseException | None = None


@dataclasses.dataclass(frozen=True)
class Fault:
    """An answer that a function gave no number for, why, and the exception behind it, if there was one in this process."""

    function: int
    row: int
    reason: str
    error: BaseException | None = None


class Run(Protocol):
    """Makes calls; None stands for those that were not made, because one failed before and `stops` was True."""

    def __call__(self, calls: Sequence[Call], stops: bool) -> Sequence[Outcome | None]: ...


# ---- one call --------------------------------------------------------------------------------------------------------------


def checked_call(function: RewardFn, arguments: Mapping[str, list[Any]]) -> Outcome:
    """Calls a reward function, and finds whatever is not one finite number for each answer."""
    count = len(arguments["completions"])
    try:
        result = function(**arguments)
    except (Exception, SystemExit) as error:
        return Outcome(failure=described(error), error=error)
    if result is None:
        return Outcome(failure="returned None; it must return one number for each answer")
    entries = result if isinstance(result, list | tuple) else np.asarray(result)
    if isinstance(entries, np.ndarray) and entries.ndim != 1:
        return Outcome(failure=f"returned {short(result)}; it must return one number for each answer, in a list")
    if len(entries) != count:
        return Outcome(failure=f"returned {len(entries)} rewards for {count} answer{'s' * (count != 1)}")
    values = [_number(entry) for entry in entries]
    faults = {
        i: f"gave {short(entry)}; a reward is a finite number"
        for i, (entry, value) in enumerate(zip(entries, values, strict=True))
        if math.isnan(value)
    }
    return Outcome(values, faults)


def _number(entry: Any) -> float:
    """The entry as a number, fractions kept; NaN if it is none that a float32 can hold."""
    if not isinstance(entry, numbers.Real):
        array = np.asarray(entry)
        if array.shape != () or array.dtype.kind not in "biuf":
            return math.nan
        entry = array.item()
    value = float(entry)
    return value if abs(value) <= _LARGEST else math.nan


def described(error: BaseException) -> str:
    """An exception of a user's function in one line: its type, its text, and the innermost line in its file."""
    frames = traceback.extract_tb(error.__traceback__)[1:]  # without our own call
    inner = [frame for frame in frames if frame.filename == frames[0].filename]
    place = f" at {inner[-1].filename}:{inner[-1].lineno}" if inner else ""
    text = short(str(error), quoted=False)
    return f"raised {type(error).__name__}{': ' if text else ''}{text}{place}"


def short(value: Any, *, quoted: bool = True) -> str:
    """The value for a message, its middle left out where it is long."""
    text = repr(value) if quoted else str(value)
    if len(text) <= _MOST_CHARACTERS:
        return text
    half = _MOST_CHARACTERS // 2
    return f"{text[:half]} … ({len(text) - 2 * half} characters) … {text[-half:]}"


# ---- all calls -------------------------------------------------------------------------------------------------------------


def evaluate(run: Run, answers: Answers, n_functions: int, *, parts: int, stops: bool) -> tuple[np.ndarray, list[Fault]]:
    """The values of all answers by all functions, and what went wrong.

    A call that fails as a whole is made again for each prompt's answers by themselves, and where that fails too for each answer
    by itself: so the answer at fault is found, whatever it did (raise, hang, crash). Those beside it then get the values of a
    call for all of them but it.

    Args:
      run: makes the calls.
      answers: to be rewarded.
      n_functions: reward functions.
      parts: calls that the answers are split over for each function; answers to one prompt stay together.
      stops: look no further once an answer at fault is found.

    Returns:
      Float32 [functions, answers], NaN at every fault; and the faults.
    """
    search = _Search(run, answers, n_functions, stops)
    rows = range(len(answers.completions))
    size = answers.group_size * max(1, -(-len(rows) // (answers.group_size * parts)))
    chunks = [rows[start : start + size] for start in range(0, len(rows), size)]
    failed = search.settle([Call(function, chunk) for function in range(n_functions) for chunk in chunks])
    if failed and stops:
        search.find_first(*failed[0])
    elif failed:
        search.find_all(failed)
    return search.values, sorted(search.faults, key=lambda fault: (fault.row, fault.function))


class _Search:
    """Values and faults so far."""

    def __init__(self, run: Run, answers: Answers, n_functions: int, stops: bool):
        self.run, self.answers, self.stops = run, answers, stops
        self.values = np.full((n_functions, len(answers.completions)), np.nan, np.float32)
        self.faults: list[Fault] = []

    def settle(self, calls: Sequence[Call]) -> list[tuple[Call, Outcome]]:
        """Makes the calls, takes over what they give, and returns those that failed as a whole."""
        failed = []
        for call, outcome in zip(calls, self.run(calls, self.stops), strict=True):
            if outcome is None:
                continue
            if outcome.failure is not None:
                failed.append((call, outcome))
                continue
            self.values[call.function, list(call.rows)] = outcome.values
            self.faults += [Fault(call.function, call.rows[i], reason) for i, reason in outcome.faults.items()]
        return failed

    def find_first(self, call: Call, outcome: Outcome) -> None:
        """Narrows a failed call down to one answer."""
        while parts := self._narrower(call):
            failed = self.settle(parts)
            if not failed:
                self._blame(call.function, call.rows[:1], outcome, together=len(call.rows))
                return
            call, outcome = failed[0]
        self._blame(call.function, call.rows, outcome)

    def find_all(self, failed: list[tuple[Call, Outcome]]) -> None:
        """Narrows failed calls down to all answers at fault; the others get their values."""
        whole = [(call, outcome) for call, outcome in failed if len(call.rows) <= self.answers.group_size]
        groups = [part for call, _ in failed if len(call.rows) > self.answers.group_size for part in self._narrower(call)]
        failed = whole + self.settle(groups)
        alone = self.settle([part for call, _ in failed for part in self._narrower(call)])
        at_fault = {(call.function, call.rows[0]): outcome for call, outcome in alone}
        others = []
        for call, outcome in failed:
            rest = [row for row in call.rows if (call.function, row) not in at_fault]
            if len(call.rows) == 1:
                self._blame(call.function, call.rows, outcome)
            elif len(rest) == len(call.rows):
                self._blame(call.function, rest, outcome, together=len(rest))
            elif len(rest) > 1:
                others.append(Call(call.function, rest))
        for (function, row), outcome in at_fault.items():
            self._blame(function, [row], outcome)
        for call, outcome in self.settle(others):
            self._blame(call.function, call.rows, outcome, together=len(call.rows))

    def _narrower(self, call: Call) -> list[Call]:
        """The same answers in calls for one prompt each; if it is one prompt's, for one answer each; [] if it is one answer."""
        size = self.answers.group_size if len(call.rows) > self.answers.group_size else 1
        if len(call.rows) == 1:
            return []
        return [Call(call.function, call.rows[start : start + size]) for start in range(0, len(call.rows), size)]

    def _blame(self, function: int, rows: Iterable[int], outcome: Outcome, *, together: int = 0) -> None:
        note = f" (called for {together} answers together; for fewer of them it works)" if together else ""
        for row in rows:
            self.values[function, row] = np.nan
            self.faults.append(Fault(function, row, f"{outcome.failure}{note}", outcome.error))
