"""What a finished sweep says on the terminal."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tunix_lab.lab.sweeps.results import CSV, PLOT, SettingResult, table
from tunix_lab.lab.sweeps.sweep import Plan


def print_sweep(sweep_dir: Path, results: Sequence[SettingResult]) -> None:
    """Prints the ranking, where its files are, and the command of the best setting."""
    plan = Plan.read(sweep_dir)
    console = Console(soft_wrap=True, highlight=False)
    console.print(table(results, [axis.field for axis in plan.space.parsed()], plan.ranking))
    for result in results:
        for entry in result.entries:
            if entry.status == "failed":
                console.print(f"trial {entry.trial.number} failed: {entry.outcome.message}", style="red", markup=False)
    console.print(f"sweep    {sweep_dir.name}")
    for name in (CSV, PLOT):
        if (sweep_dir / name).exists():
            console.print(f"{name.partition('.')[2]:<9}{sweep_dir / name}", markup=False)
    best = next((result for result in results if result.mean is not None), None)
    if best is not None and best.values:
        values = [*plan.overrides, *(f"{field}={text}" for field, text in best.values.items())]
        overrides = " ".join(f"--set {shlex.quote(value)}" for value in values)
        console.print(f"best     tunix-lab run {shlex.quote(plan.spec)} {overrides}", markup=False)
