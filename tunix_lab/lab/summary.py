"""What a finished run says on the terminal."""

from rich.console import Console

from tunix_lab.lab.runner import RunResult
from tunix_lab.spec import ExperimentSpec

_HEADLINES = ("train/reward", "train/loss", "eval/loss", "eval/accuracy", "eval/margin")


def print_result(result: RunResult, spec: ExperimentSpec) -> None:
    """Prints where the run is, its headline metrics and what to do next."""
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"[green]finished[/green] {result.run_id}")
    names = dict.fromkeys([spec.tracking.primary_metric, *_HEADLINES, *(n for n in result.metrics if n.startswith("eval/"))])
    shown = [name for name in names if name in result.metrics]
    width = max(map(len, shown), default=0) + 2
    for name in shown:
        console.print(f"  {name:<{width}}{result.metrics[name]:.4g}")
    console.print(f"model    {result.out / 'final'}")
    if result.synced is False:
        reason = f" ({result.sync_problem})" if result.sync_problem else "; it goes on in the background"
        console.print(f"tracking not complete yet{reason}, or later: tunix-lab sync {result.run_id}", markup=False)
    console.print(f"report   runs/{result.run_id}/report.html")
    console.print("compare  tunix-lab ui, or tunix-lab compare RUN RUN")
