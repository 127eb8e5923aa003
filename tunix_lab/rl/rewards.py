"""What answers are worth: reward functions, their names and weights, and what happens where one of them gives no number."""

import abc
import functools
import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from tunix_lab.errors import TrainingFailed
from tunix_lab.rl.reward_calls import Answers, Call, Fault, Outcome, RewardFn, checked_call, evaluate, short

OnError = Literal["stop", "mask"]
"""After an exception, a hang, or what is no finite number: "stop", or "mask", which makes that reward NaN and goes on."""


class RewardProblem(TrainingFailed):
    """A reward function gave no number for an answer; the message shows both.

    Attributes:
      function: name of the function.
      index: number of the answer in the call.
      prompt: its prompt.
      completion: the answer.
      reason: what the function did.
    """

    def __init__(self, function: str, index: int, count: int, prompt: str, completion: str, reason: str):
        self.function, self.index, self.prompt, self.completion, self.reason = function, index, prompt, completion, reason
        super().__init__(
            f"reward {function}: {reason}, for answer {index} of {count} (from 0):\n"
            f"  prompt: {short(prompt)}\n  completion: {short(completion)}"
        )


class Rewards(abc.ABC):
    """Reward functions that are called together.

    Attributes:
      names: of the functions, all different.
    """

    def __init__(
        self,
        names: Iterable[str],
        weights: Sequence[float] | None = None,
        on_error: OnError = "stop",
        report: Callable[[RewardProblem], None] | None = None,
    ):
        """Makes them.

        Args:
          names: of the functions; of equal ones the second gets "_2", the third "_3".
          weights: factors of their rewards; None is 1 for each.
          on_error: see `OnError`.
          report: is told of every masked reward.

        Raises:
          ValueError: there is not one weight for each function.
        """
        self.names = distinct(names)
        self._weights = np.asarray([1.0] * len(self.names) if weights is None else weights, np.float32)
        if len(self._weights) != len(self.names):
            raise ValueError(f"{len(self._weights)} weights for {len(self.names)} reward functions")
        self._on_error, self._report = on_error, report

    def score(
        self, prompts: Sequence[str], completions: Sequence[str], columns: Mapping[str, Sequence[Any]], group_size: int = 1
    ) -> dict[str, np.ndarray]:
        """The weighted rewards of each answer.

        Args:
          prompts: text of each answer's prompt.
          completions: text of each answer.
          columns: the other columns of the prompts' rows, one entry per answer.
          group_size: answers to each prompt; they stand side by side.

        Returns:
          By name of the function, float32 [answers]. All are finite, but for those that "mask" made NaN.

        Raises:
          RewardProblem: a function gave no finite number for an answer, and `on_error` is "stop".
          ValueError: the arguments do not belong together.
        """
        answers = _answers(prompts, completions, columns, group_size)
        stops = self._on_error == "stop"
        values, faults = evaluate(self._runner(answers), answers, len(self.names), parts=self._parts, stops=stops)
        for fault in faults:
            problem = self._problem(fault, answers)
            if stops:
                raise problem from fault.error
            if self._report is not None:
                self._report(problem)
        return dict(zip(self.names, values * self._weights[:, None], strict=True))

    @property
    def _parts(self) -> int:
        """Calls that answers are split over for each function."""
        return 1

    @abc.abstractmethod
    def _runner(self, answers: Answers) -> Callable[[Sequence[Call], bool], Sequence[Outcome | None]]:
        """What makes calls for these answers, see `reward_calls.Run`."""

    @abc.abstractmethod
    def close(self) -> None:
        """Ends whatever was started for them; they can be used again."""

    def __enter__(self) -> "Rewards":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _problem(self, fault: Fault, answers: Answers) -> RewardProblem:
        name, count = self.names[fault.function], len(answers.completions)
        prompt, completion = answers.prompts[fault.row], answers.completions[fault.row]
        return RewardProblem(name, fault.row, count, prompt, completion, fault.reason)


class InProcess(Rewards):
    """Reward functions that are called in this process: whatever they may be, and however long they take."""

    def __init__(self, functions: Sequence[RewardFn], **options: Any):
        """Makes them; the options are those of `Rewards`."""
        self._functions = list(functions)
        super().__init__([name_of(function) for function in self._functions], **options)

    def _runner(self, answers: Answers) -> Callable[[Sequence[Call], bool], Sequence[Outcome | None]]:
        def run(calls: Sequence[Call], stops: bool) -> list[Outcome | None]:
            outcomes: list[Outcome | None] = [None] * len(calls)
            for i, call in enumerate(calls):
                outcomes[i] = checked_call(self._functions[call.function], answers.arguments(call.rows))
                if stops and outcomes[i].failure is not None:
                    break
            return outcomes

        return run

    def close(self) -> None:
        """Nothing was started."""


def in_process(reward_fns: Sequence[RewardFn] | RewardFn | None, **options: Any) -> InProcess:
    """One reward function, several, or none, as `Rewards`; the options are those of `Rewards`."""
    return InProcess([reward_fns] if callable(reward_fns) else reward_fns or (), **options)


def score(
    reward_fns: Sequence[RewardFn] | RewardFn,
    prompts: Sequence[str],
    completions: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    group_size: int = 1,
    **options: Any,
) -> dict[str, np.ndarray]:
    """The weighted rewards of each answer by name of the function, see `Rewards`; calls the functions in this process."""
    return in_process(reward_fns, **options).score(prompts, completions, columns, group_size)


def total(rewards: Mapping[str, np.ndarray]) -> np.ndarray:
    """The sum over the functions, float32 [answers]; NaN where one of them is."""
    return np.sum(list(rewards.values()), axis=0, dtype=np.float32)


# ---- names -----------------------------------------------------------------------------------------------------------------


def name_of(function: RewardFn) -> str:
    """The name of a function; of a partial one that of the function in it, of any other callable object that of its class."""
    while isinstance(function, functools.partial):
        function = function.func
    return function.__name__ if inspect.isroutine(function) or inspect.isclass(function) else type(function).__name__


def distinct(names: Iterable[str]) -> list[str]:
    """The names, with a number behind those that were there before."""
    taken: list[str] = []
    for name in names:
        numbered = (f"{name}_{i}" for i in itertools.count(2))
        taken.append(next(each for each in itertools.chain([name], numbered) if each not in taken))
    return taken


def _answers(prompts: Sequence[str], completions: Sequence[str], columns: Mapping[str, Any], group_size: int) -> Answers:
    count = len(completions)
    reserved = {"prompts", "completions"} & set(columns)
    if reserved:
        raise ValueError(f"no column for rewards can be named {min(reserved)!r}: reward functions get an argument of that name")
    for name, values in {"prompts": prompts, **columns}.items():
        if len(values) != count:
            raise ValueError(f"rewards: {len(values)} {name} for {count} completions")
    if count % group_size:
        raise ValueError(f"rewards: {count} completions are not groups of {group_size}")
    return Answers(list(prompts), list(completions), {name: _listed(values) for name, values in columns.items()}, group_size)


def _listed(values: Any) -> list[Any]:
    """One entry per answer; of a NumPy array of numbers or texts plain Python's."""
    return values.tolist() if isinstance(values, np.ndarray) and values.ndim == 1 else list(values)
