"""`tunix-lab run`: execute one experiment."""

from pathlib import Path
from typing import Annotated

import typer


def run(
    spec: Annotated[Path, typer.Argument(help="Spec file.", show_default=False)],
    overrides: Annotated[
        list[str], typer.Option("--set", metavar="A.B=C", help="Override a field; may be repeated.", show_default=False)
    ] = [],  # noqa: B006 (never changed)
    out: Annotated[Path | None, typer.Option(help="Folder for model, metrics and curves instead of the run's own.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew even if an interrupted run could be continued.")] = False,
) -> None:
    """Run an experiment; goes on with its interrupted run if there is one, and makes what it starts from if that is missing."""
    from tunix_lab.spec import LabSettings, find_home, load

    settings = LabSettings()
    home = find_home(settings)
    loaded = load(spec, overrides, home)

    from tunix_lab.lab.runner import run as run_spec
    from tunix_lab.lab.summary import print_result

    print_result(run_spec(loaded, home, settings, out=out, fresh=fresh), loaded.spec)
