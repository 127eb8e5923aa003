"""`tunix-lab data`: make the arithmetic datasets and their tokenizer, and look at what a spec trains on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text


def arithmetic(
    out: Annotated[Path, typer.Option(help="Folder that receives sft/, preference/ and pretrain/.")] = Path("data/arithmetic"),
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same bytes.")] = 0,
    train: Annotated[int, typer.Option(min=1, help="Rows to train on, of each dataset.")] = 6000,
    validation: Annotated[int, typer.Option(min=1, help="Rows to validate on.")] = 300,
    test: Annotated[int, typer.Option(min=1, help="Rows to test on.")] = 300,
) -> None:
    """Make word problems with worked answers; train, validation and test share no problem."""
    from tunix_lab.tasks.arithmetic import write

    for path, rows in write(out, seed=seed, train=train, validation=validation, test=test).items():
        typer.echo(f"{out / path}: {rows} rows")


def tokenizer(
    corpus: Annotated[list[Path], typer.Option(help="JSONL file of dataset rows; may be repeated.", show_default=False)],
    vocab_size: Annotated[int, typer.Option(help="Most ids; at least 262 (256 bytes and 6 special tokens).")] = 512,
    out: Annotated[Path, typer.Option(help="Folder that receives the tokenizer.")] = Path("data/tokenizer"),
) -> None:
    """Train a byte-level BPE tokenizer with single digits and Gemma's chat template."""
    from tunix_lab.data.rows import read_rows
    from tunix_lab.data.tokenizer_training import train_tokenizer

    made = train_tokenizer([row for path in corpus for row in read_rows(path)], vocab_size, out)
    typer.echo(f"{out}: {made.vocab_size} ids, sha256 {made.digest()}")


def show(
    spec: Annotated[Path, typer.Argument(help="Spec file.", show_default=False)],
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="Rows to show.")] = 5,
    split: Annotated[str, typer.Option(help="train or validation.")] = "train",
    overrides: Annotated[
        list[str], typer.Option("--set", metavar="A.B=C", help="Override a field; may be repeated.", show_default=False)
    ] = [],  # noqa: B006 (never changed)
) -> None:
    """Show the first rows as the trainer gets them: every token, trained ones bright and in ⟦brackets⟧. Needs no weights."""
    from tunix_lab.data.rows import place_of
    from tunix_lab.data.show import parts_of
    from tunix_lab.data.tokenizer import Tokenizer
    from tunix_lab.lab.datasets import load_dataset
    from tunix_lab.lab.origin import tokenizer_folder
    from tunix_lab.spec import find_home, load

    home = find_home()
    checked = load(spec, overrides, home).spec
    reader = Tokenizer.load(tokenizer_folder(checked, home))
    dataset = load_dataset(checked, home, split, reader, first=count)
    console = Console(soft_wrap=True, highlight=False)
    for row, example in zip(dataset.ledger.kept_rows, dataset.examples, strict=True):
        console.print(Text(place_of(dataset.rows, row), "bold"))
        for part in parts_of(example, reader):
            console.print(f"  {part.name}: {len(part.tokens)} tokens, {sum(part.trained)} trained, {part.padding} padding")
            console.print(Text("    ").append(_draw(part.tokens, part.trained)))
    console.print(f"{split}: " + ", ".join(f"{name} {value}" for name, value in dataset.ledger.summary().items()))


def _draw(tokens: Sequence[str], trained: Sequence[bool]) -> Text:
    """Tokens with a bar between them, each run of trained ones in brackets, so that it reads without colours too."""
    bright, dim = "bold green", "dim"
    drawn = Text()
    before = False
    for token, is_trained in zip(tokens, trained, strict=True):
        if is_trained != before:
            drawn.append("⟦" if is_trained else "⟧", bright)
        elif len(drawn):
            drawn.append("│", dim)
        drawn.append(token.replace("\n", "⏎"), bright if is_trained else dim)
        before = is_trained
    return drawn.append("⟧", bright) if before else drawn
