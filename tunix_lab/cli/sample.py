"""`tunix-lab sample`: prompt a model."""

from typing import Annotated

import typer
from rich.console import Console


def sample(
    model: Annotated[str, typer.Argument(help="Run id, or folder of a model.", show_default=False)],
    prompts: Annotated[list[str], typer.Option("--prompt", "-p", help="What to ask; may be repeated.", show_default=False)],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 64,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(min=1, help="Only the k likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Only the likeliest tokens of this total probability.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the random numbers.")] = 0,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without the chat template.")] = False,
) -> None:
    """Let a model answer prompts."""
    from tunix_lab.lab.sample import answer
    from tunix_lab.spec import find_home

    console = Console(highlight=False, soft_wrap=True)
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    for prompt, text in zip(prompts, answer(find_home(), model, prompts, max_new_tokens, raw=raw, **options), strict=True):
        console.print(prompt, style="dim", markup=False)
        console.print(text + "\n", markup=False)
