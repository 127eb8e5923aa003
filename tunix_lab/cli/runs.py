"""`tunix-lab runs`: the runs of this project with status and headline metrics, read from their directories alone."""

import dataclasses
import json
import math
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from tunix_lab.lab.record.journal import RunState

_SHOWN = 20
_HEADLINES = ("eval/loss", "train/loss")
_REWARD = "train/reward"  # where answers are sampled; a loss says little there
_NOT_SCORES = ("eval/answer_tokens", "eval/stopped", "eval/margin")
_COLOURS = {"running": "cyan", "finished": "green", "failed": "red", "killed": "yellow"}


def runs(
    everything: Annotated[bool, typer.Option("--all", help=f"All runs, not only the newest {_SHOWN}.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array, for programs.")] = False,
) -> None:
    """List runs, newest first."""
    from tunix_lab.cli._project import open_project
    from tunix_lab.lab.record.journal import list_runs

    found = [_row(state) for state in list_runs(open_project().home)]
    if as_json:
        rows = found if everything else found[:_SHOWN]
        typer.echo(json.dumps(rows, indent=1, allow_nan=False))
        return
    folded = [] if everything else [row for row in found if row["sweep"] is not None]
    unfolded = [row for row in found if row not in folded]
    rows = unfolded if everything else unfolded[:_SHOWN]
    console = Console()
    if not rows:
        console.print("No runs yet. `tunix-lab run experiments/dpo_gemma.yaml` makes one.")
        return
    console.print(_table(rows))
    hidden = {"older runs": len(unfolded) - len(rows), "runs of sweeps": len(folded)}
    if any(hidden.values()):
        console.print(" and ".join(f"{n} {what}" for what, n in hidden.items() if n) + ": tunix-lab runs --all")


def _row(state: "RunState") -> dict[str, Any]:
    """What is known about a run, as JSON values; a non-finite metric is null."""
    from tunix_lab.errors import UserError
    from tunix_lab.lab.record.journal import read_manifest

    try:
        manifest = read_manifest(state.run_dir)
    except UserError:  # killed before it was written
        manifest = {}
    end = state.ended_ms or time.time_ns() // 1_000_000
    row = {name: value for name, value in dataclasses.asdict(state).items() if name not in ("run_dir", "latest")}
    return row | {
        "kind": manifest.get("kind"),
        "name": manifest.get("name"),
        "experiment": manifest.get("experiment"),
        "primary_metric": manifest.get("primary_metric"),
        "sweep": manifest.get("sweep"),
        "trial": manifest.get("trial"),
        "duration_s": max(0, end - state.started_ms) / 1000 if state.started_ms else None,
        "metrics": {name: value if math.isfinite(value) else None for name, value in state.latest.items()},
    }


def _table(rows: list[dict[str, Any]]) -> Table:
    """Fits a terminal of 100 columns: one headline per run instead of a column per metric."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("run", "status"):
        table.add_column(name, no_wrap=True)
    for name in ("step", "duration"):
        table.add_column(name, justify="right")
    table.add_column("headline")
    for row in rows:
        # A run that was asked to stop has saved; one that was killed goes on from an older checkpoint.
        asked = row["status"] == "killed" and (row["message"] or "").startswith("stopped by")
        status = f"[{_COLOURS[row['status']]}]{'stopped' if asked else row['status']}[/]"
        table.add_row(row["run_id"], status, f"{row['step']:,}", _duration(row["duration_s"]), _headline(row))
    return table


def _headline(row: dict[str, Any]) -> str:
    """The run's primary metric and losses, or rewards; of an evaluation, which has no such metric, its scores."""
    if row["kind"] == "sweep":
        return _sweep_headline(row)
    scores = sorted(name for name in row["metrics"] if name.startswith("eval/") and name not in _NOT_SCORES)
    headlines = (_REWARD,) if _REWARD in row["metrics"] else _HEADLINES
    names = scores if row["kind"] == "evaluate" else [row["primary_metric"], *headlines]
    numbers = [f"{name} {_number(row['metrics'][name])}" for name in dict.fromkeys(names) if name in row["metrics"]]
    trial = [] if row["trial"] is None else [f"trial {row['trial'].rpartition('/')[2]} of {row['sweep']}"]
    return "  ".join([*numbers, *trial])


def _sweep_headline(row: dict[str, Any]) -> str:
    """How far a sweep is, and the best mean of its metric."""
    metrics = {name.removeprefix("sweep/"): value for name, value in row["metrics"].items()}
    if "trials" not in metrics:
        return ""
    parts = [f"{metrics['finished']:g} of {metrics['trials']:g} trials"]
    parts += [f"{metrics['failed']:g} failed"] * bool(metrics["failed"])
    parts += [f"best {row['primary_metric']} {_number(metrics['best'])}"] if "best" in metrics else []
    return "  ".join(parts)


def _number(value: float | None) -> str:
    return "nan" if value is None else f"{value:.4g}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
