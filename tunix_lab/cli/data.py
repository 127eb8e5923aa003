"""`tunix-lab data`: make datasets and a tokenizer; `tunix-lab show-data`: look at what a spec trains on."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from tunix_lab.data.ledger import Ledger
    from tunix_lab.data.tokenizer import Tokenizer
    from tunix_lab.lab.datasets import Part


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
    corpus: Annotated[
        list[Path], typer.Option(help="File of dataset rows (JSONL, CSV, Parquet); may be repeated.", show_default=False)
    ],
    vocab_size: Annotated[int, typer.Option(help="Most ids; at least 262 (256 bytes and 6 special tokens).")] = 512,
    out: Annotated[Path, typer.Option(help="Folder that receives the tokenizer.")] = Path("data/tokenizer"),
) -> None:
    """Train a byte-level BPE tokenizer with single digits and Gemma's chat template."""
    from tunix_lab.data.files import read_rows
    from tunix_lab.data.tokenizer_training import train_tokenizer

    made = train_tokenizer([row for path in corpus for row in read_rows(path)], vocab_size, out)
    typer.echo(f"{out}: {made.vocab_size} ids, sha256 {made.digest()}")


def gsm8k(
    source: Annotated[Path, typer.Option(help="Folder with train.jsonl, test.jsonl and example_model_solutions.jsonl.")],
    out: Annotated[Path, typer.Option(help="Folder that receives sft/, reasoning/ and preference/.")] = Path("data/gsm8k"),
    seed: Annotated[int, typer.Option(min=0, help="Chooses the questions that are held out.")] = 0,
    keep_annotations: Annotated[
        bool, typer.Option("--keep-annotations", help="Keep the calculator's <<48/2=24>>; else they are taken out.")
    ] = False,
) -> None:
    """Make SFT, reasoning and preference rows of GSM8K.

    The preference rows are of the test's questions: sft/unseen_test.jsonl is not.
    """
    from tunix_lab.tasks.gsm8k import write

    for path, rows in write(source, out, seed=seed, keep_annotations=keep_annotations).items():
        typer.echo(f"{out / path}: {rows} rows")


def show_data(
    spec: Annotated[Path, typer.Argument(help="Spec file.", show_default=False)],
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="Rows to show, of each file.")] = 5,
    split: Annotated[str, typer.Option(help="train or validation.")] = "train",
    overrides: Annotated[
        list[str], typer.Option("--set", metavar="A.B=C", help="Override a field; may be repeated.", show_default=False)
    ] = [],  # noqa: B006 (never changed)
) -> None:
    """Show the first rows as the trainer gets them: every token, trained ones bright and in ⟦brackets⟧. Needs no weights."""
    from tunix_lab.data.tokenizer import Tokenizer
    from tunix_lab.lab.datasets import load_dataset
    from tunix_lab.lab.origin import tokenizer_folder
    from tunix_lab.spec import find_home, load

    home = find_home()
    checked = load(spec, overrides, home).spec
    reader = Tokenizer.load(tokenizer_folder(checked, home))
    dataset = load_dataset(checked, home, split, reader, first=count)
    console = Console(soft_wrap=True, highlight=False)
    for part in dataset.parts:
        if len(dataset.parts) > 1:
            console.print(Text(_title(part), "bold cyan"))
        for number in range(min(count, len(part.examples))):
            _show_example(console, part, number, reader)
        if len(dataset.parts) > 1:
            console.print(_counts(part.ledger))
    console.print(_counts(dataset.ledger))


def _title(part: "Part") -> str:
    """The name of a source, and how often it is drawn."""
    weight = part.file.source.weight
    return f"{part.file.key}: {part.file.name}, {'every row once an epoch' if weight is None else f'weight {weight:g}'}"


def _show_example(console: Console, part: "Part", number: int, reader: "Tokenizer") -> None:
    """An example under the places of its rows; the segments of a packed one each under its own."""
    from tunix_lab.data.rows import place_of
    from tunix_lab.data.show import parts_of

    places = [place_of(part.rows, row) for row in part.members[number]]
    sequences = parts_of(part.examples[number], reader)
    packed = sequences[0].name.startswith("segment")
    if packed:
        tokens, padding = sum(len(sequence.tokens) for sequence in sequences), sequences[-1].padding
        console.print(Text(f"packed row {number + 1}: {len(places)} segments, {tokens} tokens, {padding} padding", "bold"))
    else:
        console.print(Text(places[0], "bold"))
    for index, sequence in enumerate(sequences):
        counts = f"{len(sequence.tokens)} tokens, {sum(sequence.trained)} trained"
        console.print(f"  {sequence.name}: {counts}, " + (places[index] if packed else f"{sequence.padding} padding"))
        console.print(Text("    ").append(_draw(sequence.tokens, sequence.trained)))


def _counts(ledger: "Ledger") -> str:
    return f"{ledger.split}: " + ", ".join(f"{name} {value}" for name, value in ledger.summary().items())


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
