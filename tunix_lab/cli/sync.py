"""`tunix-lab sync`: completes the MLflow record of runs that it could not reach while they trained."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from tunix_lab.errors import EnvironmentProblem, UserError

if TYPE_CHECKING:
    from tunix_lab.lab.record.run_state import RunState
    from tunix_lab.lab.tracking.store import Store

_PATIENCE_SECONDS = 60.0  # somebody waits for it to be done


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
    from tunix_lab.lab.record.journal import find_run
    from tunix_lab.lab.tracking.store import parse_store

    project = open_project()
    store = parse_store(project.tracking_uri)
    chosen = [find_run(project.home, text) for text in run_ids or []]
    run_dirs = chosen or _runs_to_push(project.home, project.tracking_uri, everything)
    if run_dirs:
        _check(store, run_dirs)
    console = Console(soft_wrap=True, highlight=False)
    failed = 0
    for run_dir in run_dirs:
        said, succeeded = _push(run_dir, project.tracking_uri)
        failed += not succeeded
        console.print(said, markup=False)
    if not run_dirs:
        console.print("Everything is in MLflow.")
    if failed:
        raise EnvironmentProblem(f"{failed} of {len(run_dirs)} runs are not in MLflow yet: run `tunix-lab sync` again later")


def _push(run_dir: Path, tracking_uri: str) -> tuple[str, bool]:
    """What became of a run, in one line, and whether it went well. What is wrong with one run stops no other."""
    from tunix_lab.lab.tracking.sync import push

    try:
        pushed = push(run_dir, tracking_uri, _PATIENCE_SECONDS)
    except (UserError, OSError) as error:
        return f"{run_dir.name}: not pushed: {error}", False
    waiting = f", {pushed.pending:,} wait" if pushed.pending else ""
    reason = f": {pushed.problem}" if pushed.problem else ""
    said = f"{pushed.run_id}: {pushed.points:,} points pushed{waiting} ({pushed.outcome}{reason})"
    return said, pushed.outcome != "pending"


def _check(store: "Store", run_dirs: list[Path]) -> None:
    """Tells once what is wrong with the store, and how much waits for it."""
    from tunix_lab.lab.tracking.cursor import pending_points
    from tunix_lab.lab.tracking.problems import check_store

    try:
        check_store(store)
    except EnvironmentProblem as error:
        points = sum(pending_points(run_dir, store.uri) for run_dir in run_dirs)
        runs = "1 run" if len(run_dirs) == 1 else f"{len(run_dirs)} runs"
        waiting = f"{runs} with {points:,} points wait{'s' if len(run_dirs) == 1 else ''} here: run `tunix-lab sync` again"
        raise EnvironmentProblem(f"{error} ({waiting})") from error


def _runs_to_push(home: Path, tracking_uri: str, everything: bool) -> list[Path]:
    """Oldest first, so that a parent comes before its children.

    A run that died before it wrote its manifest has nothing to push, and never will.
    """
    from tunix_lab.lab.record.journal import list_runs
    from tunix_lab.lab.record.run_state import MANIFEST

    states = [state for state in reversed(list_runs(home)) if state.attempt and (state.run_dir / MANIFEST).is_file()]
    return [state.run_dir for state in states if everything or _lacks_something(state, tracking_uri)]


def _lacks_something(state: "RunState", tracking_uri: str) -> bool:
    from tunix_lab.lab.tracking.sync import is_complete

    try:
        return not is_complete(state.run_dir, tracking_uri, state)
    except UserError:  # its manifest is damaged, which the push will say
        return True
