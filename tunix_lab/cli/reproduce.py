"""`tunix-lab reproduce`: make a run again from its record, and say how close it came."""

import math
from typing import Annotated

import typer


def _finite(value: float) -> float:
    """Refuses what typer's own bound lets through: not a number, and infinity, under which everything counts as the same."""
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


def reproduce(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run id; MLflow is asked if it is not here.", show_default=False)],
    check: Annotated[bool, typer.Option("--check", help="Compare code, data and environment only; train nothing.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse where the environment is another.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the folder with the code and the data of the run.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Do not go on with an interrupted attempt.")] = False,
    tolerance: Annotated[
        float, typer.Option(min=0, callback=_finite, help="Largest relative difference of a metric that still counts.")
    ] = 1e-3,
) -> None:
    """Make a run again: its commit, patch and untracked files in a clean folder, its data by hash, then train and compare."""
    from rich.console import Console

    from tunix_lab.errors import Mismatch
    from tunix_lab.lab.reproduce.reproduce import Options
    from tunix_lab.lab.reproduce.reproduce import reproduce as make_again
    from tunix_lab.spec.settings import LabSettings, find_home, tracking_uri

    settings = LabSettings()
    home = find_home(settings)
    console = Console(highlight=False, soft_wrap=True, markup=False)
    options = Options(check, strict, keep, fresh, tolerance, settings.replicates)
    uri = tracking_uri(settings, home)
    result = make_again(home, run, tracking_uri=uri, cache=settings.cache_dir, options=options, say=console.print)
    if result is None:
        console.print("check    everything that the run needs is here; without --check it is trained again")
        return
    console.print(f"run      {result.run_id}, which has it all in reproduction.json")
    for note in result.notes:
        console.print(f"note     {note}")
    if not result.succeeded:
        raise Mismatch(f"{result.verdict}\ncompare  tunix-lab diff {result.reproduces} {result.run_id}")
    console.print(f"verdict  {result.verdict}")
