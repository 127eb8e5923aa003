"""A sample of a run's rollouts for MLflow: as tables to compare, and as traces of prompt, completions and rewards.

Which rollouts are shown follows from the manifest alone, and every id from what it stands for, so a push may be repeated.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunix_lab.lab.record.run_state import TRAJECTORIES

if TYPE_CHECKING:
    from mlflow.entities import Span, TraceInfo

    from tunix_lab.lab.rollouts import Answer, Group

MAX_ROLLOUTS = 25  # of training, and as many of evaluations: more than anybody looks at, and a page of MLflow that still opens
MAX_PROMPTS = 8  # of a rollout
_PREVIEW = 200  # characters


def due(cadence: Mapping[str, int], mode: str, step: int) -> bool:
    """Whether the rollout of a step is shown: of training and of evaluations evenly spaced ones, and the last.

    Args:
      cadence: updates between rollouts by mode, and those of the whole run: "train", "eval", "last"; see `record.manifest`.
      mode: "train" or "eval".
      step: updates made before it.
    """
    number, rest = divmod(step, cadence[mode])
    stride = math.ceil((cadence["last"] // cadence[mode] + 1) / MAX_ROLLOUTS)
    last = cadence["last"] - (cadence[mode] if mode == "train" else 0)  # updates follow a rollout of training
    return step == last or (rest == 0 and number % stride == 0)


def chosen(events: Iterable[Mapping[str, Any]], manifest: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The events of the rollouts to show; of one that a resumed run made again the first, whose time is that of the traces."""
    first: dict[str, Mapping[str, Any]] = {}
    for event in events:
        if event["kind"] == TRAJECTORIES and due(manifest["rollouts"], event["mode"], event["step"]):
            first.setdefault(event["path"], event)
    return list(first.values())


def read_groups(path: Path) -> "list[Group]":
    """The first prompts of a rollout with their answers."""
    from tunix_lab.lab.record.trajectories import read_file
    from tunix_lab.lab.rollouts import groups_of

    return groups_of(read_file(path))[:MAX_PROMPTS]


def table_of(groups: "Sequence[Group]") -> str:
    """The rollout as MLflow's JSON of a table; it groups rows by the first column and lays the second side by side over runs."""
    names = list(groups[0].answers[0].rewards)
    columns = ["prompt", "completion", "reward", *(f"reward_{name}" for name in names), "tokens", "finish_reason", "step"]
    data = [
        [
            answer.prompt if len(group.answers) == 1 else f"{answer.prompt} [{answer.number}]",  # unique, to be laid beside
            answer.completion,
            _number(answer.reward),
            *(_number(answer.rewards[name]) for name in names),
            len(answer.completion_ids),
            answer.finish_reason,
            answer.step,
        ]
        for group in groups
        for answer in group.answers
    ]
    return json.dumps({"columns": columns, "data": data}, ensure_ascii=False, allow_nan=False)


def table_path(path: str) -> str:
    """Where the table of a rollout's file lies among the artifacts."""
    return f"{path.removesuffix('.parquet')}.json"


def traces_of(groups: "Sequence[Group]", *, run_id: str, experiment_id: str, t: int) -> "list[tuple[TraceInfo, list[Span]]]":
    """A trace for each prompt: the prompt, below it its completions, below each its rewards.

    The record has no times within a rollout: a trace begins at `t`, and each completion a millisecond after the one before it.

    Args:
      groups: of one rollout.
      run_id: MLflow's id of the run.
      experiment_id: of its experiment.
      t: when the rollout was recorded, Unix time in ms.
    """
    return [_trace(group, run_id, experiment_id, t) for group in groups]


def _trace(group: "Group", run_id: str, experiment_id: str, t: int) -> "tuple[TraceInfo, list[Span]]":
    from mlflow.entities import TraceInfo, TraceLocation, TraceState
    from mlflow.tracing.constant import TraceMetadataKey, TraceTagKey

    first, count = group.answers[0], len(group.answers)
    title = f"{first.mode} step {first.step}"
    trace = _digest(run_id, first.mode, first.step, first.group)[:32]
    best = max(group.answers, key=lambda answer: -math.inf if math.isnan(answer.reward) else answer.reward)
    outputs = {"mean_reward": _number(group.mean), "std": _number(group.std), "best": best.completion}
    root = _span(trace, "prompt", None, title, "CHAIN", (t, t + count), first.prompt, outputs)
    spans = [root, *(span for answer in group.answers for span in _answer_spans(trace, root.span_id, answer, t))]
    info = TraceInfo(
        trace_id=f"tr-{trace}",
        trace_location=TraceLocation.from_experiment_id(experiment_id),
        request_time=t,
        execution_duration=count,
        state=TraceState.OK,
        request_preview=first.prompt[:_PREVIEW],
        response_preview=best.completion[:_PREVIEW],
        trace_metadata={TraceMetadataKey.SOURCE_RUN: run_id},
        tags={
            TraceTagKey.TRACE_NAME: title,
            "lab.mode": first.mode,
            "lab.step": str(first.step),
            "lab.reward": f"{group.mean:.4g}",
        },
    )
    return info, spans


def _answer_spans(trace: str, root: str, answer: "Answer", t: int) -> "list[Span]":
    """A completion, and below it what each function gave it."""
    begin, name = t + answer.number, f"completion {answer.number}"
    facts = {
        "reward": _number(answer.reward),
        "tokens": len(answer.completion_ids),
        "finish_reason": answer.finish_reason,
        "trained": answer.trained,
        "advantage": _number(float(answer.advantages.mean())) if len(answer.advantages) else None,
    }
    own = _span(trace, name, root, name, "LLM", (begin, begin + 1), answer.prompt, answer.completion, **facts)
    given = {"completion": answer.completion, **answer.columns}
    return [
        own,
        *(
            _span(trace, f"{name} {reward}", own.span_id, reward, "EVALUATOR", (begin, begin + 1), given, _number(value))
            for reward, value in answer.rewards.items()
        ),
    ]


def _span(
    trace: str,
    key: str,
    parent: str | None,
    name: str,
    kind: str,
    times: tuple[int, int],
    inputs: Any,
    outputs: Any,
    **facts: Any,
) -> "Span":
    """A finished span; `times` are its begin and end in ms, and its id follows from its trace and `key`."""
    from mlflow.entities import Span
    from mlflow.tracing.constant import SpanAttributeKey

    attributes = {
        SpanAttributeKey.REQUEST_ID: f"tr-{trace}",
        SpanAttributeKey.SPAN_TYPE: kind,
        SpanAttributeKey.INPUTS: inputs,
        SpanAttributeKey.OUTPUTS: outputs,
        **facts,
    }
    begin, end = times
    return Span.from_dict(
        {
            "trace_id": f"tr-{trace}",
            "span_id": _digest(trace, key)[:16],
            "parent_span_id": parent,
            "name": name,
            "start_time_unix_nano": begin * 1_000_000,
            "end_time_unix_nano": end * 1_000_000,
            "status": {"code": "STATUS_CODE_OK"},
            "attributes": {name: json.dumps(value, default=repr) for name, value in attributes.items()},
        }
    )


def _digest(*parts: Any) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
