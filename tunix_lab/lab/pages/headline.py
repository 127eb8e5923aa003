"""Which metrics a person looks at first, which way they are better, and how numbers are written."""

import difflib
import math
import statistics
from collections.abc import Sequence

from tunix_lab.errors import UserError
from tunix_lab.lab.pages.run_view import Curve, RunView

THROUGHPUT = "perf/tokens_per_s"
STEP_TIME = "perf/step_s"
_FIRST = ("eval/loss", "train/loss")
_LOWER = ("loss", "perplexity")
_HIGHER = ("accuracy", "exact_match")
SAMPLED_REWARD = "train/reward"
_OF_ROLLOUTS = (
    SAMPLED_REWARD,
    "train/kl",
    "train/entropy",
    "train/answer_tokens",
    "train/frac_zero_std_groups",
    "train/clip_fraction",
)
"""What is looked at in reinforcement learning, beside the rewards of evaluations."""
_NOT_HEADLINES = ("eval/answer_tokens", "eval/stopped")


def higher_is_better(name: str, views: Sequence[RunView]) -> bool | None:
    """Which way a metric is better: as the runs say of their primary metric, else by its name; None where nobody knows."""
    said = {bool(view.manifest.get("higher_is_better")) for view in views if view.primary == name}
    if len(said) == 1:
        return said.pop()
    if name.endswith(_HIGHER) or is_reward(name):
        return True
    return False if name.endswith(_LOWER) else None


def is_reward(name: str) -> bool:
    """Whether a metric is a mean reward: the whole one, or that by one function."""
    metric = name.partition("/")[2]
    return metric == "reward" or (metric.startswith("reward_") and metric != "reward_std")


def headline_metrics(views: Sequence[RunView]) -> list[str]:
    """The metrics to show of these runs: primary ones, those of rollouts, losses, what was evaluated, throughput."""
    known = {name for view in views for name in view.curves}
    evaluated = [name for name in known if name.startswith("eval/") and name not in _NOT_HEADLINES]
    evaluated.sort(key=lambda name: (higher_is_better(name, views) is None, name))  # scores before log-probabilities
    first = _FIRST
    if SAMPLED_REWARD in known:  # there eval/loss is minus the mean reward
        first, evaluated = (*_OF_ROLLOUTS, "train/loss"), [name for name in evaluated if name != "eval/loss"]
    wanted = dict.fromkeys([*(view.primary for view in views if view.primary), *first, *evaluated, THROUGHPUT])
    return [name for name in wanted if name in known]


def chosen_metrics(views: Sequence[RunView], names: Sequence[str]) -> list[str]:
    """`names`, each of which one of the runs must have; without any, the headline metrics.

    Raises:
      UserError: no run has a metric of this name.
    """
    known = sorted({name for view in views for name in view.curves})
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"they have: {', '.join(known) or 'no metrics'}"
            raise UserError(f"--metric {name}: none of these runs has it; {hint}")
    return list(dict.fromkeys(names)) or headline_metrics(views)


def is_typical(name: str) -> bool:
    """Whether the median tells more about a metric than its last value: true of everything that is timed."""
    return name.startswith("perf/")


def typical(curve: Curve) -> float:
    """The median without the first value, which is that of an update that compiles."""
    values = [value for value in curve.values[1:] or curve.values if math.isfinite(value)]
    return statistics.median(values) if values else math.nan


def number(value: float | None) -> str:
    """A number as people read it: four significant digits, thousands with commas."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "inf" if value > 0 else "−inf"
    if value == 0:
        return "0"
    if 1000 <= abs(value) < 1e9:
        return f"{value:,.0f}".replace("-", "−")
    return f"{value:.4g}".replace("-", "−")


def duration(seconds: float | None) -> str:
    """Seconds as h:mm:ss or m:ss; below ten seconds with a decimal."""
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def size(n_bytes: float) -> str:
    """Bytes with a unit of ten."""
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} GB"


def strict_number(value: float | None) -> float | None:
    """A number for strict JSON: a non-finite one is None."""
    return None if value is None or not math.isfinite(value) else value
