"""`tunix-lab export`: a model or an adapter for others, proved to be the one that was trained."""

import re
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


class Format(StrEnum):
    """What is exported."""

    hf = "hf"
    peft = "peft"


class DType(StrEnum):
    """Of the exported tensors."""

    float32 = "float32"
    bfloat16 = "bfloat16"


def export(
    model: Annotated[str, typer.Argument(metavar="RUN_OR_DIR", help="Run id, or folder of a model.", show_default=False)],
    to: Annotated[Path, typer.Option(help="Folder to make.", show_default=False)],
    format: Annotated[Format, typer.Option(help="hf: the whole model, adapter merged; peft: the adapter alone.")] = Format.hf,
    dtype: Annotated[DType | None, typer.Option(help="Convert the tensors; by default they keep their type.")] = None,
    max_file_size: Annotated[str, typer.Option(help="Weights go to several files beyond it, as 500MB or 5GB.")] = "5GB",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
    python: Annotated[Path, typer.Option(help="Interpreter that has transformers, for the check from outside.")] = Path(
        sys.executable
    ),
) -> None:
    """Export in the Hugging Face layout, read it back and prove that it is the same model."""
    size = parse_size(max_file_size)
    from tunix_lab.lab.export.export import Export
    from tunix_lab.lab.export.export import export as write
    from tunix_lab.spec import find_home

    wanted = Export(model, to, str(python), format.value, None if dtype is None else dtype.value, size, overwrite)
    write(wanted, find_home(), report=lambda receipt: Console().print(_table(receipt)))


def parse_size(text: str) -> int:
    """ "5GB" -> 5 000 000 000; units are those of ten, or KiB, MiB, GiB."""
    from tunix_lab.errors import UserError

    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*((?:[KMG]I?)?)B?", text.strip().upper())
    size = 0 if match is None else int(float(match[1]) * _UNITS[match[2]])
    if size < 1:
        raise UserError(f"--max-file-size: {text!r} is no size; write 500MB or 5GB")
    return size


def _table(receipt: dict[str, Any]) -> Table:
    table = Table(title=f"{receipt['source']['name']} as {receipt['format']}, {receipt['dtype']}", title_justify="left")
    for name in ("check", "", "difference", "allowed", "note"):
        table.add_column(name, overflow="fold")
    results = {True: "[green]passed[/]", False: "[red]FAILED[/]", None: "–"}
    for check in receipt["checks"]:
        numbers = ["" if check[key] is None else f"{check[key]:.3g}" for key in ("value", "tolerance")]
        table.add_row(check["name"], results[check["passed"]], *numbers, check["note"])
    return table
