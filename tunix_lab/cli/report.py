"""`tunix-lab report`: the page of one run."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    run_id: Annotated[
        str, typer.Argument(metavar="RUN_ID", help="Run: its id, or the beginning or end of it.", show_default=False)
    ],
    out: Annotated[
        Path | None, typer.Option(help="HTML file to write instead of report.html of the run.", show_default=False)
    ] = None,
) -> None:
    """Write one self-contained HTML page: verdict, curves, samples, spec, lineage, times, checkpoints."""
    from tunix_lab.cli._project import open_project
    from tunix_lab.lab.pages.report import REPORT, write_report
    from tunix_lab.lab.record.run_state import find_one_training

    run_dir = find_one_training(open_project().home, run_id)
    file = out or run_dir / REPORT
    write_report(run_dir, file)
    typer.echo(file)
