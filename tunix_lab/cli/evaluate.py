"""`tunix-lab evaluate`: measure a model on held-out rows."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def evaluate(
    model: Annotated[str, typer.Argument(help="Run id, or folder of a model.", show_default=False)],
    prompts: Annotated[Path | None, typer.Option(help='JSONL rows {"prompt", "answer"} to answer and score.')] = None,
    pairs: Annotated[Path | None, typer.Option(help='JSONL rows {"prompt", "chosen", "rejected"} to rank.')] = None,
    reference: Annotated[str | None, typer.Option(help="Model before preference training, for the reward margin.")] = None,
    scorer: Annotated[str, typer.Option(help="module:function that scores answers.")] = "tunix_lab.tasks.arithmetic:exact_match",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 64,
    rows: Annotated[int | None, typer.Option(min=1, help="At most so many rows of each file.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for the metrics.")] = None,
) -> None:
    """Measure a model on held-out rows: scored answers, and preferences between pairs."""
    from tunix_lab.errors import UserError

    if prompts is None and pairs is None:
        raise UserError("evaluate: nothing to measure on; give --prompts, --pairs or both")
    from tunix_lab.lab.evaluate import Evaluation
    from tunix_lab.lab.evaluate import evaluate as measure
    from tunix_lab.spec import LabSettings, find_home

    settings = LabSettings()
    evaluation = Evaluation(model, prompts, pairs, reference, scorer, max_new_tokens, rows)
    for name, value in measure(evaluation, find_home(settings), settings, out).items():
        Console().print(f"{name:<26}{value:.4g}")
