"""What a finished run says on the terminal."""

from rich.console import Console
from rich.table import Table

from tunix_lab.lab.runner import RunResult
from tunix_lab.spec import ExperimentSpec

_HEADLINES = ("train/loss", "eval/loss", "eval/accuracy", "eval/margin")


def print_result(result: RunResult, spec: ExperimentSpec) -> None:
    """Prints where the run is, its headline metrics and what to do next."""
    console = Console()
    table = Table(title=f"{result.run_id}: finished", title_justify="left", show_header=False, box=None)
    names = dict.fromkeys([spec.tracking.primary_metric, *_HEADLINES, *(n for n in result.metrics if n.startswith("eval/"))])
    for name in names:
        if name in result.metrics:
            table.add_row(name, f"{result.metrics[name]:.4g}")
    console.print(table)
    console.print(f"model    {result.out / 'final'}", soft_wrap=True)
    if result.synced is False:
        console.print(f"not in MLflow yet: tunix-lab sync {result.run_id}")
    console.print("compare  tunix-lab ui")
