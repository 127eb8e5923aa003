"""The `tunix-lab` command: registers the verbs, and turns a user's mistake into one message and an exit code."""

import os
import sys

import typer

from tunix_lab.cli.check import check
from tunix_lab.cli.compare import compare
from tunix_lab.cli.data import arithmetic, gsm8k, show_data, tokenizer
from tunix_lab.cli.diff import diff
from tunix_lab.cli.evaluate import evaluate
from tunix_lab.cli.export import export
from tunix_lab.cli.lineage import lineage
from tunix_lab.cli.models import models
from tunix_lab.cli.report import report
from tunix_lab.cli.reproduce import reproduce
from tunix_lab.cli.resume import resume
from tunix_lab.cli.run import run
from tunix_lab.cli.runs import runs
from tunix_lab.cli.sample import sample
from tunix_lab.cli.schema import schema
from tunix_lab.cli.sweep import sweep
from tunix_lab.cli.sync import sync
from tunix_lab.cli.trajectories import trajectories
from tunix_lab.cli.ui import ui
from tunix_lab.cli.verify_resume import verify_resume
from tunix_lab.errors import Stopped, UserError, unwritable

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Post-train language models in JAX; every run is an experiment that can be found, compared and repeated.",
)
for verb in (
    *(run, resume, sweep, check, schema, show_data, models),
    *(runs, trajectories, compare, diff, report, lineage, reproduce, ui, sync, verify_resume),
    *(evaluate, sample, export),
):
    app.command()(verb)

data = typer.Typer(no_args_is_help=True, help="Make datasets and a tokenizer.")
for verb in (arithmetic, gsm8k, tokenizer):
    data.command()(verb)
app.add_typer(data, name="data")


def main() -> None:
    """The entry point."""
    try:
        app()
    except (UserError, Stopped) as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # Whoever read the output has gone (`tunix-lab runs | head`); Python must not complain about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        problem = unwritable(error)
        if problem is None:
            raise
        print(problem, file=sys.stderr)
        sys.exit(problem.exit_code)
