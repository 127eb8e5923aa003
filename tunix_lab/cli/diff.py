"""`tunix-lab diff`: how two runs differ, and the first update in which they part."""

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from tunix_lab.lab.divergence import Divergence, Gap
    from tunix_lab.lab.run_diff import Difference, RunDiff

_SHOWN = 12
_LAYERS = 6


def diff(
    a: Annotated[str, typer.Argument(metavar="RUN_A", help="Run id, or its beginning or end.", show_default=False)],
    b: Annotated[str, typer.Argument(metavar="RUN_B", help="The run to compare it with.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit with 5 where the runs diverge.")] = False,
) -> None:
    """Say what two runs have differently, and the first update, cause and layer in which they diverge."""
    from tunix_lab.cli._project import open_project
    from tunix_lab.errors import Mismatch
    from tunix_lab.lab.record.run_state import find_one_training
    from tunix_lab.lab.run_diff import diff_runs

    home = open_project().home
    found = diff_runs(find_one_training(home, a), find_one_training(home, b))
    if as_json:
        typer.echo(json.dumps(as_data(found), indent=1, allow_nan=False))
    else:
        console = Console(highlight=False, soft_wrap=True)
        for line in screen(found):
            console.print(line, markup=isinstance(line, Table))
    if exit_code and found.diverged:
        raise typer.Exit(Mismatch.exit_code)


def as_data(found: "RunDiff") -> dict[str, Any]:
    """Everything as JSON values; a number that is none is text."""

    def plain(value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return str(value)
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    data = dataclasses.asdict(found) | {"diverged": found.diverged, "same_updates": found.same_updates}
    if found.divergence is not None:
        gaps = ("loss", "grad_norm", "last_loss", "last_grad_norm")
        values = dataclasses.asdict(found.divergence)
        for name, gap in zip(gaps, (getattr(found.divergence, name) for name in gaps), strict=True):
            values[name]["relative"] = gap.relative
        data["divergence"] = values
    return plain(data)


def screen(found: "RunDiff") -> Iterator[str | Table]:
    """The answer, top to bottom: what differs in what went in, then where the runs part."""
    yield f"A  {found.a}"
    yield f"B  {found.b}"
    for title, entries in (("configuration", found.configuration), ("environment", found.environment), ("data", found.data)):
        yield f"\n{title}: {_counted(len(entries))}"
        if entries:
            yield _table(entries)
        if len(entries) > _SHOWN:
            yield f"  and {len(entries) - _SHOWN} more: --json has all"
    yield from _went_on(found)
    yield ""
    yield from _updates(found)
    yield from _rollout(found)
    yield from _results(found)


def _went_on(found: "RunDiff") -> Iterator[str]:
    """What a run changed in itself: its environment above is that of its first attempt."""
    for name, entries in zip("AB", found.went_on, strict=True):
        if entries:
            yield f"\nrun {name} went on with something else than it began with:"
        for entry in entries[:_SHOWN]:
            yield f"  {entry.name}: {entry.a} → {entry.b}"
        if len(entries) > _SHOWN:
            yield f"  and {len(entries) - _SHOWN} more: --json has all"


def _updates(found: "RunDiff") -> Iterator[str]:
    ends = dict(zip("AB", found.updates, strict=True))
    for name, steps in ends.items():
        if steps is None:
            yield f"updates: run {name} has no fingerprints, so only metrics and final parameters can be compared"
            return
    divergence = found.divergence
    if divergence is None:
        common = min(last for _, last in ends.values())
        yield f"updates: the same, bit for bit, up to step {common}"
        for name, (_, last) in ends.items():
            if last > common:
                yield f"  run {name} goes on to step {last}"
        return
    yield f"updates: diverge at step {divergence.step}: {divergence.cause}"
    yield from (f"  {line}" for line in explained(divergence))
    yield from (f"  before it: {reason}" for reason in found.before if divergence.first)


def explained(divergence: "Divergence") -> Iterator[str]:
    """What differs at the step, in which layers, by how much there and at the end."""
    yield divergence.detail
    if divergence.layers:
        more = f" and {len(divergence.layers) - _LAYERS} more" if len(divergence.layers) > _LAYERS else ""
        yield f"layers: {', '.join(divergence.layers[:_LAYERS])}{more}"
    if divergence.same_params_after is not None:
        yield f"the parameters were the same after step {divergence.same_params_after}"
    elif divergence.first:
        yield "it is the first update that was compared: the runs may have begun with other parameters"
    yield f"at step {divergence.step}: {_pair(divergence.loss, divergence.grad_norm)}"
    if divergence.last_step > divergence.step:
        yield f"at step {divergence.last_step}: {_pair(divergence.last_loss, divergence.last_grad_norm)}"


def _rollout(found: "RunDiff") -> Iterator[str]:
    """The first sampled answer that is not the same; as Python writes texts, so that none steers the terminal."""
    gap = found.rollout
    if gap is not None:
        yield f"rollouts: differ from step {gap.step} on: {gap.detail}"
        yield f"  prompt {gap.prompt!r}"
        yield from (f"  {name} {text!r}" for name, text in (("A", gap.a), ("B", gap.b)))


def _pair(loss: "Gap", norm: "Gap") -> str:
    return f"loss {_gap(loss)}; gradient norm {_gap(norm)}"


def _gap(gap: "Gap") -> str:
    if gap.relative == 0:
        return f"{gap.a:.6g} in both"
    return f"{gap.a:.6g} | {gap.b:.6g} (relative {gap.relative:.2g})"


def _results(found: "RunDiff") -> Iterator[str]:
    if found.metrics:
        first = found.metrics[0]
        yield (
            f"metrics: {len(found.metrics):,} of {found.compared:,} values differ; "
            f"the first is {first.name} at step {first.step}: {_gap(first.gap)}"
        )
    else:
        yield f"metrics: {found.compared:,} train and eval values, all the same" if found.compared else "metrics: none in common"
    a, b = found.params
    if a is None or b is None:
        missing = " and ".join(name for name, digest in zip("AB", found.params, strict=True) if digest is None)
        yield f"final parameters: run {missing} left none"
    else:
        yield f"final parameters: {'the same bytes' if a == b else 'differ'}"


def _counted(number: int) -> str:
    return "the same" if number == 0 else f"{number} differ" if number > 1 else "1 differs"


def _table(entries: "Sequence[Difference]") -> Table:
    table = Table(box=None, pad_edge=True, show_header=True, header_style="dim")
    table.add_column("", overflow="fold")
    for name in "AB":
        table.add_column(name, overflow="fold", max_width=48)
    for entry in entries[:_SHOWN]:
        table.add_row(*(text.replace("[", r"\[") for text in (entry.name, entry.a, entry.b)))
    return table
