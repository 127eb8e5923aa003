"""`tunix-lab ui`: MLflow's pages of this project's runs, on this machine only unless told otherwise."""

import signal
from typing import Annotated

import typer
from rich.console import Console


def ui(
    port: Annotated[int | None, typer.Option(help="Port; the first free one if left out.")] = None,
    host: Annotated[
        str, typer.Option(help="Address to serve on. Any other than loopback is open to that network.")
    ] = "127.0.0.1",
) -> None:
    """Serve the MLflow UI and print the pages worth opening. Ctrl-C ends it."""
    from tunix_lab.cli._project import open_project
    from tunix_lab.lab.tracking.problems import check_store
    from tunix_lab.lab.tracking.store import parse_store
    from tunix_lab.lab.tracking.ui import page_urls, serve, until_stopped

    console = Console(soft_wrap=True, highlight=False)
    project = open_project()
    store = parse_store(project.tracking_uri)
    if store.sqlite_file is None:  # somebody else serves it
        check_store(store)
        _print_pages(console, page_urls(store, store.shown))
        return
    if host not in ("127.0.0.1", "::1", "localhost"):
        console.print(f"Anyone who reaches {host} can read and change these runs: there is no password.")
    console.print("Starting MLflow …")
    with until_stopped(), serve(store, host, port) as base:
        _print_pages(console, page_urls(store, base))
        console.print(f"\nServing {store.sqlite_file} at {base}. Ctrl-C ends it.")
        signal.pause()


def _print_pages(console: Console, pages: dict[str, dict[str, str]]) -> None:
    for experiment, urls in pages.items():
        console.print(f"\n[bold]{experiment}[/bold]")
        for title, url in urls.items():
            console.print(f"  {title:<12} {url}")
    if not pages:
        console.print("No runs yet. `tunix-lab run experiments/dpo_gemma.yaml` makes one.")
