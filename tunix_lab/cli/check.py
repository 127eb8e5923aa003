"""`tunix-lab check`: whether specs are right, without loading any engine."""

from pathlib import Path
from typing import Annotated

import typer

from tunix_lab.spec import SpecError


def check(
    specs: Annotated[list[Path], typer.Argument(metavar="SPEC...", help="Spec files.", show_default=False)],
    overrides: Annotated[
        list[str], typer.Option("--set", metavar="A.B=C", help="Override a field; may be repeated.", show_default=False)
    ] = [],  # noqa: B006 (never changed)
    resolved: Annotated[bool, typer.Option("--resolved", help="Print each value and where it comes from.")] = False,
    devices: Annotated[int | None, typer.Option(min=1, help="Also check that the spec fits so many devices.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check spec files and say every mistake with its place. Exit code 2 where there is one."""
    from tunix_lab.spec import report

    results = report.check_files(specs, overrides, devices)
    problems = report.all_problems(results)
    text = report.as_json(results, resolved=resolved) if as_json else report.as_text(results, resolved=resolved)
    if text:
        typer.echo(text)
    if problems and as_json:
        raise typer.Exit(SpecError.exit_code)
    if problems:
        raise SpecError(problems)
