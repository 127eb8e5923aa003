"""`tunix-lab verify-resume`: whether an experiment that is killed and resumed ends as if nothing had happened."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table


def verify_resume(
    spec: Annotated[Path, typer.Argument(help="Spec file.", show_default=False)],
    overrides: Annotated[
        list[str], typer.Option("--set", metavar="A.B=C", help="Override a field; may be repeated.", show_default=False)
    ] = [],  # noqa: B006 (never changed)
    steps: Annotated[int, typer.Option(min=4, help="Updates of either run.")] = 12,
    kill_after: Annotated[
        list[int] | None, typer.Option(help="Kill after this update; may be repeated. Half-way if left out.", show_default=False)
    ] = None,
) -> None:
    """Run an experiment whole, and again with SIGKILL and resume; compare everything that they leave. Exit code 5: unequal."""
    from tunix_lab.spec import LabSettings, find_home, load

    home = find_home(LabSettings())
    whole = load(spec, overrides, home).spec

    from tunix_lab.errors import Mismatch, UserError
    from tunix_lab.lab.upstream import make_missing
    from tunix_lab.lab.verify_resume import CERTIFICATE, shortened
    from tunix_lab.lab.verify_resume import verify_resume as verify

    kills = sorted(kill_after or [steps // 2])
    if not 0 < kills[0] <= kills[-1] < steps:
        raise UserError(f"--kill-after: must lie between 1 and {steps - 1} (--steps {steps}), got {kills}")
    short = load(spec, [*overrides, *shortened(whole, steps)], home).spec
    make_missing(short, home)
    certificate = verify(short, home, kill_after=kills)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{steps} updates; killed after {certificate.killed_after}, resumed from step {certificate.resumed_from}")
    console.print(_table(certificate.checks))
    path = home / "runs" / certificate.run_id / CERTIFICATE
    if not certificate.holds:
        raise Mismatch(f"{whole.name}: the resumed run is another run; see {path}")
    console.print(f"{whole.name}: the resumed run is the run that was not killed, bit for bit. Certificate: {path}")


def _table(checks: list) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("compared")
    for name in ("number", "different"):
        table.add_column(name, justify="right")
    table.add_column("first differences")
    for check in checks:
        different = f"[red]{check.different:,}[/]" if check.different else "0"
        table.add_row(check.what, f"{check.compared:,}", different, "; ".join(check.first))
    return table
