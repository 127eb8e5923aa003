"""`tunix-lab models`: the families and sizes that are served, and what each needs."""

import dataclasses
import json
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table


def models(
    family: Annotated[str | None, typer.Argument(help="Only this family.", show_default=False)] = None,
    context: Annotated[int, typer.Option(min=1, help="Tokens of the sequence whose key-value cache is counted.")] = 8192,
    rank: Annotated[int, typer.Option(min=1, help="Of the adapters.")] = 16,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array, for programs; bytes.")] = False,
) -> None:
    """List model families and sizes, their parameters, and the memory for inference, LoRA and full training."""
    from tunix_lab.errors import UserError
    from tunix_lab.models.sizes import SIZES

    if family is not None and family not in SIZES:
        raise UserError(f"models: no family {family!r}; there are {', '.join(SIZES)}")
    rows = [row for row in _rows(context, rank) if family in (None, row["family"])]
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    console = Console()
    console.print(_table(rows))
    console.print(
        f"GiB on all devices together, without activations. inference: bfloat16 weights, key-value cache of {context:,} tokens · "
        f"LoRA: bfloat16 weights, adapters of rank {rank} with AdamW · full: float32 weights with AdamW",
        style="dim",
    )


def _rows(context: int, rank: int) -> Iterator[dict[str, Any]]:
    from tunix_lab.models.footprint import active_param_count, footprint, param_count
    from tunix_lab.models.sizes import SIZES

    for family, sizes in SIZES.items():
        for size, make in sizes.items():
            config = make()
            needs = dataclasses.asdict(footprint(config, context=context, rank=rank))
            counts = {"parameters": param_count(config), "active_parameters": active_param_count(config)}
            yield {"family": family, "size": size, **counts, "max_positions": config.max_positions, **needs}


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("family", "size"):
        table.add_column(name)
    for name in ("parameters", "context", "inference", "LoRA", "full"):
        table.add_column(name, justify="right")
    before = None
    for row in rows:
        family = row["family"] if row["family"] != before else ""
        before = row["family"]
        needs = (_gib(row[need]) for need in ("inference", "lora", "full"))
        active = "" if row["active_parameters"] == row["parameters"] else f" ({_count(row['active_parameters'])} active)"
        table.add_row(family, row["size"], _count(row["parameters"]) + active, f"{row['max_positions']:,}", *needs)
    return table


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f}" if size >= 2**30 else f"{size / 2**30:.2g}"


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.1f} M"
