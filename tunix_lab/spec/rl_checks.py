"""Combinations of fields that are wrong together in reinforcement learning."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tunix_lab.spec.algorithm import Dapo, Reinforcement, fixed_rl_metrics, reward_metric
from tunix_lab.spec.errors import Fault

if TYPE_CHECKING:
    from tunix_lab.spec.experiment import ExperimentSpec


def rollout_prompts(spec: "ExperimentSpec") -> int:
    """Prompts that are answered at once."""
    return spec.algorithm.rollout.prompts or spec.training.batch_size


def updates_per_rollout(spec: "ExperimentSpec") -> int:
    """Optimizer updates that are made from the answers of one rollout."""
    return max(1, rollout_prompts(spec) // spec.training.batch_size) * spec.algorithm.num_iterations


def rl_faults(spec: "ExperimentSpec") -> Iterator[Fault]:
    """All faults of reinforcement learning that can be seen without knowing the number of devices."""
    if not isinstance(spec.algorithm, Reinforcement):
        return
    prompts, batch = rollout_prompts(spec), spec.training.batch_size
    if prompts % batch:
        message = f"must be a multiple of training.batch_size ({batch}), so that every update is of whole batches; got {prompts}"
        yield ("algorithm", "rollout", "prompts"), message
    else:
        yield from _step_faults(spec)
    yield from _reward_faults(spec)
    budget = spec.algorithm.rollout.max_new_tokens
    if isinstance(spec.algorithm, Dapo) and (spec.algorithm.overlong_buffer_length or 0) > budget:
        message = f"must be at most algorithm.rollout.max_new_tokens ({budget}), got {spec.algorithm.overlong_buffer_length}"
        yield ("algorithm", "overlong_buffer_length"), message


def _step_faults(spec: "ExperimentSpec") -> Iterator[Fault]:
    """Steps that lie within a rollout, where there is nothing to save."""
    updates = updates_per_rollout(spec)
    places = [
        ("training", "max_steps", spec.training.max_steps),
        ("training", "eval_every", spec.training.eval_every),
        ("checkpoint", "every", spec.checkpoint.every),
    ]
    if spec.training.log_every > 1:  # the metrics of a rollout are those of its last update
        places.append(("training", "log_every", spec.training.log_every))
    if spec.samples is not None:
        places.append(("samples", "every", spec.samples.every))
    for section, field, steps in places:
        if steps % updates:
            below = steps - steps % updates
            near = f"{below} or {below + updates}" if below else f"{updates}"
            yield (
                (section, field),
                f"must be a multiple of {updates}, the updates made from one rollout (algorithm.num_iterations x "
                "algorithm.rollout.prompts / training.batch_size): weights are saved and judged between rollouts only, so that a "
                f"resumed run samples the same answers; got {steps}, take {near}",
            )


def _reward_faults(spec: "ExperimentSpec") -> Iterator[Fault]:
    """Rewards that would be logged under one name."""
    fixed, seen = fixed_rl_metrics(spec.algorithm), set()
    for number, function in enumerate(spec.algorithm.rewards.functions):
        place = ("algorithm", "rewards", "functions", number, "function" if function.name is None else "name")
        metric = reward_metric(function)
        if function.label in seen:
            yield place, f"another function is called {function.label!r}, too; give each a name of its own"
        elif {f"train/{metric}", f"eval/{metric}"} & fixed:
            yield place, f"{metric} is already the name of another metric; give the function another name"
        seen.add(function.label)


def rl_placement_faults(spec: "ExperimentSpec", fsdp: int) -> Iterator[Fault]:
    """Rows that `fsdp` devices cannot share evenly: each prompt is as many rows as it has answers. Evaluations fill up."""
    answers, training = spec.algorithm.num_generations, spec.training
    rollout = "batch_size" if spec.algorithm.rollout.prompts is None else None
    forward = "batch_size" if training.micro_batch_size is None else "micro_batch_size"
    places = {("training", forward): training.rows_per_forward}
    places |= {("training", rollout) if rollout else ("algorithm", "rollout", "prompts"): rollout_prompts(spec)}
    for place, prompts in places.items():
        if prompts * answers % fsdp:
            yield (
                place,
                f"{prompts} prompts x {answers} answers (algorithm.num_generations) cannot be split evenly over {fsdp} devices "
                "(mesh.fsdp)",
            )
