"""`tunix-lab sync`: completes the MLflow record of runs that it could not reach while they trained."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tunix_lab.errors import EnvironmentProblem


def sync(
    run_ids: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN_ID]...", help="Runs; all that lack something if none.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Check complete runs too (a store that lost them is filled again).")
    ] = False,
) -> None:
    """Push journals to MLflow: every point exactly once, however often it is run."""
    from tunix_lab.cli._project import open_project
    from tunix_lab.lab.journal import find_run
    from tunix_lab.lab.mlflow_sync import push

    project = open_project()
    chosen = [find_run(project.home, text) for text in run_ids or []]
    run_dirs = chosen or _runs_to_push(project.home, project.tracking_uri, everything)
    console = Console(soft_wrap=True, highlight=False)
    failed = 0
    for run_dir in run_dirs:
        pushed = push(run_dir, project.tracking_uri)
        failed += pushed.outcome == "pending"
        waiting = f", {pushed.pending:,} wait" if pushed.pending else ""
        reason = f": {pushed.problem}" if pushed.problem else ""
        console.print(f"{pushed.run_id}: {pushed.points:,} points pushed{waiting} ({pushed.outcome}{reason})", markup=False)
    if not run_dirs:
        console.print("Everything is in MLflow.")
    if failed:
        raise EnvironmentProblem(f"{failed} of {len(run_dirs)} runs are not in MLflow yet: run `tunix-lab sync` again later")


def _runs_to_push(home: Path, tracking_uri: str, everything: bool) -> list[Path]:
    """Oldest first, so that a parent comes before its children."""
    from tunix_lab.lab.journal import list_runs
    from tunix_lab.lab.mlflow_sync import is_complete

    states = [state for state in reversed(list_runs(home)) if state.attempt]
    return [state.run_dir for state in states if everything or not is_complete(state.run_dir, tracking_uri, state)]
