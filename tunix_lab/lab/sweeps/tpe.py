"""Chooses the next setting of a sweep by the tree-structured Parzen estimator (Bergstra et al. 2011) of Optuna.

There is no database: the history is rebuilt from the trials' own records each time, so that any process can choose the next one.
"""

import dataclasses
import importlib.util
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tunix_lab.errors import EnvironmentProblem
from tunix_lab.lab.sweeps.space import Axis, Choices, Range, Space

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_MOST_RANDOM = 10  # settings that are drawn at random before there is something to learn from


@dataclasses.dataclass(frozen=True)
class Tried:
    """A setting that was chosen earlier.

    Attributes:
      values: text by field.
      score: mean of the metric over its seeds; None where there is none, since it failed.
      is_open: whether a trial of it still waits or runs.
    """

    values: dict[str, str]
    score: float | None
    is_open: bool


def require_optuna() -> None:
    """Raises EnvironmentProblem where Optuna is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise EnvironmentProblem("--tpe needs Optuna, which is not installed: pip install 'tunix_lab[sweep]'")


def suggest(space: Space, tried: Sequence[Tried], *, higher_is_better: bool) -> dict[str, str]:
    """The next setting; the same history gives the same one.

    Args:
      space: what may be tried.
      tried: all settings so far.
      higher_is_better: which way the metric improves.
    """
    require_optuna()
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    axes = space.parsed()
    distributions = {axis.field: _distribution(axis) for axis in axes}
    # A sampler of its own for each setting, since the process that chose the last one may be gone.
    seed = random.Random(f"{space.first_seed} {len(tried)}").getrandbits(32)
    startup = min(_MOST_RANDOM, max(3, space.settings // 3))
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup)
    study = optuna.create_study(sampler=sampler, direction="maximize" if higher_is_better else "minimize")
    known = [setting.score for setting in tried if setting.score is not None]
    # A setting that is still open counts as bad, so that workers side by side do not choose the same one ("constant liar").
    liar = None if not known else (min(known) if higher_is_better else max(known))
    for setting in tried:
        score = liar if setting.is_open else setting.score
        state = optuna.trial.TrialState.COMPLETE if score is not None else optuna.trial.TrialState.FAIL
        params = {axis.field: _value(axis, setting.values[axis.field]) for axis in axes}
        study.add_trial(optuna.trial.create_trial(state=state, value=score, params=params, distributions=distributions))
    chosen = study.ask(distributions).params
    return {axis.field: _text(axis, chosen[axis.field]) for axis in axes}


def _distribution(axis: Axis) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    match axis:
        case Choices(texts=texts):
            return CategoricalDistribution(texts)
        case Range(is_integer=True):
            return IntDistribution(int(axis.low), int(axis.high), log=axis.is_log)
    return FloatDistribution(axis.low, axis.high, log=axis.is_log)


def _value(axis: Axis, text: str) -> str | int | float:
    match axis:
        case Choices():
            return text
        case Range(is_integer=True):
            return int(text)
    return float(text)


def _text(axis: Axis, value: Any) -> str:
    return value if isinstance(axis, Choices) else axis.text(value)
