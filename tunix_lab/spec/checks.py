"""Combinations of fields that are wrong together though each is right alone."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tunix_lab.spec.algorithm import Distill, Logits, Ppo, Reinforcement, metric_names
from tunix_lab.spec.data import ChatData, Data, FileSource, HubSource, PromptData, TextData
from tunix_lab.spec.errors import Fault, Problem, SpecError, did_you_mean
from tunix_lab.spec.model import ExperimentInit, RandomInit
from tunix_lab.spec.rl_checks import rl_faults, rl_placement_faults

if TYPE_CHECKING:
    from tunix_lab.spec.experiment import ExperimentSpec

_COLUMNS = {
    "text": ("text",),
    "chat": ("prompt", "completion", "messages"),
    "preference": ("prompt", "chosen", "rejected"),
}
"""What each kind of data reads of a row."""

_DATA_KINDS = {
    "sft": ("text", "chat"),
    "dpo": ("preference",),
    "ipo": ("preference",),
    "orpo": ("preference",),
    "distill": ("text", "chat"),
    **dict.fromkeys(("grpo", "gspo", "dapo", "drgrpo", "rloo", "ppo"), ("prompts",)),
}


def combination_faults(spec: "ExperimentSpec") -> Iterator[Fault]:
    """All faults that can be seen without knowing the number of devices."""
    yield from _upstream_faults(spec)
    yield from _depth_faults(spec)
    yield from _tokenizer_faults(spec)
    yield from _data_faults(spec)
    yield from _step_faults(spec)
    yield from _strategy_faults(spec)
    yield from rl_faults(spec)
    yield from _metric_faults(spec)
    fsdp, tp = (None if size == -1 else size for size in (spec.mesh.fsdp, spec.mesh.tp))
    yield from _placement_faults(spec, fsdp, tp)


def device_faults(spec: "ExperimentSpec", devices: int) -> Iterator[Fault]:
    """Faults of running `spec` on so many devices."""
    try:
        fsdp, tp = spec.mesh.shape(devices)
    except ValueError as error:
        yield ("mesh",), f"{error}; change an axis (-1: all remaining devices) or the devices that are visible"
        return
    # An axis that is given has been checked with the spec.
    yield from _placement_faults(spec, fsdp if spec.mesh.fsdp == -1 else None, tp if spec.mesh.tp == -1 else None)


def check_devices(spec: "ExperimentSpec", devices: int) -> None:
    """Raises SpecError where `spec` cannot be placed on so many devices."""
    problems = [Problem(None, ".".join(path), message) for path, message in device_faults(spec, devices)]
    if problems:
        raise SpecError(problems)


def _upstream_faults(spec: "ExperimentSpec") -> Iterator[Fault]:
    if isinstance(spec.model.init, ExperimentInit) and spec.model.init.name == spec.name:
        yield ("model", "init", "name"), f"experiment {spec.name!r} cannot start from its own output"
    teacher = spec.algorithm.teacher if isinstance(spec.algorithm, Distill) else None
    if isinstance(teacher, ExperimentInit) and teacher.name == spec.name:
        yield ("algorithm", "teacher", "name"), f"experiment {spec.name!r} cannot be its own teacher"
    critic = spec.algorithm.critic.init if isinstance(spec.algorithm, Ppo) else None
    if isinstance(critic, ExperimentInit) and critic.name == spec.name:
        yield ("algorithm", "critic", "init", "name"), f"experiment {spec.name!r} cannot be its own critic"


def _depth_faults(spec: "ExperimentSpec") -> Iterator[Fault]:
    if spec.model.num_layers is not None and not isinstance(spec.model.init, RandomInit):
        yield ("model", "num_layers"), "stored weights have the layers they have: only with model.init: {kind: random}"


def _tokenizer_faults(spec: "ExperimentSpec") -> Iterator[Fault]:
    if isinstance(spec.model.init, RandomInit) and spec.tokenizer.path is None:
        message = "missing: random weights come without a tokenizer (`tunix-lab data tokenizer` makes one)"
        yield ("tokenizer", "path"), message


def _data_faults(spec: "ExperimentSpec") -> Iterator[Fault]:
    kinds = _DATA_KINDS[spec.algorithm.kind]
    if spec.data.kind not in kinds:
        wanted = " or ".join(repr(kind) for kind in kinds)
        yield ("data", "kind"), f"algorithm {spec.algorithm.kind!r} needs data of kind {wanted}, got {spec.data.kind!r}"
    yield from _column_faults(spec.data)
    yield from _weight_faults(spec.data)
    if isinstance(spec.data, TextData | ChatData):
        yield from _shape_faults(spec.data)


def _given_sources(data: Data) -> Iterator[tuple[tuple[str | int, ...], FileSource | HubSource]]:
    """The sources that have fields of their own, and where they stand."""
    for split, given in (("train", data.train), ("validation", data.validation)):
        places = enumerate(given) if isinstance(given, list) else [(None, given)]
        for index, source in places:
            if isinstance(source, FileSource | HubSource):
                yield ("data", split) if index is None else ("data", split, index), source


def _column_faults(data: Data) -> Iterator[Fault]:
    """Columns that the rows are not read for; rewards read whatever prompts come with."""
    if isinstance(data, PromptData):
        return
    known = _COLUMNS[data.kind]
    given = [(("data",), data.columns)] + [(place, source.columns or {}) for place, source in _given_sources(data)]
    for place, columns in given:
        for name in columns:
            if name not in known:
                hint = did_you_mean(name, known) or f"; {data.kind} data reads {', '.join(known)}"
                yield (*place, "columns", name), f"{data.kind} data has no column {name!r}{hint}"


def _weight_faults(data: Data) -> Iterator[Fault]:
    """Weights where none count, or on some sources only."""
    for place, source in _given_sources(data):
        if source.weight is not None and not (place[1] == "train" and isinstance(data.train, list)):
            yield (*place, "weight"), "weights are for the sources of a list under data.train; everywhere else all rows count"
    weights = [source.weight for source in data.sources("train")]
    if None in weights and any(weights):
        yield ("data", "train"), "give every source a weight, or none: without weights each row comes once an epoch"


def _shape_faults(data: TextData | ChatData) -> Iterator[Fault]:
    """Buckets that hold too little or too much."""
    if data.buckets is None:
        return
    if data.packing:
        yield ("data", "buckets"), "packed rows are full already: choose data.packing or data.buckets"
    if sorted(set(data.buckets)) != data.buckets or data.buckets[-1] != data.max_length:
        yield ("data", "buckets"), f"must rise and end with data.max_length ({data.max_length}), got {data.buckets}"


def _step_faults(spec: "ExperimentSpec") -> Iterator[Fault]:
    training, warmup = spec.training, spec.optimizer.schedule.warmup_steps
    if training.batch_size % training.rows_per_forward:
        rows = training.rows_per_forward
        yield ("training", "micro_batch_size"), f"must divide training.batch_size ({training.batch_size}), got {rows}"
    if warmup and warmup >= training.max_steps:
        path = ("optimizer", "schedule", "warmup_steps")
        yield path, f"must be less than training.max_steps ({training.max_steps}), got {warmup}"


def _strategy_faults(spec: "ExperimentSpec") -> Iterator[Fault]:
    """Layers whose outputs are compared cannot be folded into a scan or computed again."""
    if not isinstance(spec.algorithm, Distill) or isinstance(spec.algorithm.strategy, Logits):
        return
    for field, value, usual in (("scan_layers", spec.training.scan_layers, False), ("remat", spec.training.remat, "none")):
        if value != usual:
            kind = spec.algorithm.strategy.kind
            yield ("training", field), f"strategy {kind!r} compares what the layers compute; only 'logits' can do without"


def _metric_faults(spec: "ExperimentSpec") -> Iterator[Fault]:
    known, score = set(metric_names(spec.algorithm)), None
    if spec.samples is not None and spec.samples.scorer is not None:
        score = f"eval/{spec.samples.scorer.partition(':')[2]}"
        known.add(score)
    best, kept = spec.checkpoint.keep_best, ("checkpoint", "keep_best", "metric")
    named = [(("tracking", "primary_metric"), spec.tracking.primary_metric)] + ([] if best is None else [(kept, best.metric)])
    for place, metric in named:
        if metric not in known:
            hint = did_you_mean(metric, sorted(known)) or f"; there are {', '.join(sorted(known))}"
            yield place, f"this experiment does not produce {metric!r}{hint}"
        elif place == kept and not metric.startswith("eval/"):
            yield place, f"{metric!r} is of a batch, which says little of a checkpoint: take one of eval/"
        elif place == kept:
            judged = spec.samples.every if metric == score else spec.training.eval_every
            if math.lcm(judged, spec.checkpoint.every) > spec.training.max_steps:
                yield (
                    place,
                    f"no checkpoint has a {metric}: known every {judged} steps, saved every {spec.checkpoint.every}",
                )


def _placement_faults(spec: "ExperimentSpec", fsdp: int | None, tp: int | None) -> Iterator[Fault]:
    """Faults of splitting over axes of these sizes; None is an axis that is not looked at."""
    training, heads = spec.training, spec.model.decoder_config().num_heads
    if fsdp is not None and isinstance(spec.algorithm, Reinforcement):
        yield from rl_placement_faults(spec, fsdp)
    elif fsdp is not None:
        rows_field = "batch_size" if training.micro_batch_size is None else "micro_batch_size"
        for field, rows in ((rows_field, training.rows_per_forward), ("eval_batch_size", training.eval_batch_size)):
            if rows % fsdp:
                yield ("training", field), f"{rows} rows cannot be split evenly over {fsdp} devices (mesh.fsdp)"
    if tp is not None and heads % tp:
        yield ("mesh", "tp"), f"{spec.model.size}'s {heads} heads cannot be split evenly over {tp} devices"
