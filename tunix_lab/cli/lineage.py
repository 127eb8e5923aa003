"""`tunix-lab lineage`: what made a file or a run, and what was made from it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.tree import Tree

if TYPE_CHECKING:
    from tunix_lab.lab.lineage.graph import Branch, Graph, Node
    from tunix_lab.lab.lineage.query import Found

_SHORT = 8
_WIDE = 240
_SHAPES = {"run": '(["{}"])', "stage": '(["{}"])', "export": '(["{}"])'}  # makers are round, contents are boxes


def lineage(
    what: Annotated[
        str, typer.Argument(metavar="FILE|RUN", help="File, folder, run id, or beginning of a hash.", show_default=False)
    ],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="A flow chart in Mermaid's language, for Markdown.")] = False,
    remote: Annotated[bool, typer.Option("--remote", help="Add the runs of the tracking store, colleagues' among them.")] = False,
) -> None:
    """Show which data, code, weights and runs made something, and what was made from it."""
    from tunix_lab.cli._project import open_project
    from tunix_lab.errors import Mismatch
    from tunix_lab.lab.lineage.query import Lineage

    project = open_project()
    records = None
    if remote:
        from tunix_lab.lab.tracking.lineage import read_remote_runs
        from tunix_lab.lab.tracking.store import parse_store

        records = read_remote_runs(parse_store(project.tracking_uri))
    answers = Lineage(project.home, records)
    found = answers.find(what, Path.cwd())
    up, down = answers.graph.made_from(found.node), answers.graph.used_by(found.node)
    if as_json:
        typer.echo(json.dumps(_answer(what, found, up, down), indent=1))
    elif mermaid:
        typer.echo(_mermaid(answers.graph, found, up, down))
    else:
        _print(found, up, down)
    if found.mismatch is not None:
        raise typer.Exit(Mismatch.exit_code)


def _answer(what: str, found: "Found", up: "Branch", down: "Branch") -> dict[str, Any]:
    return {
        "query": what,
        "node": _plain(up.node),
        "mismatch": found.mismatch,
        "notes": list(found.notes),
        "made_from": [_nested(branch) for branch in up.branches],
        "used_by": [_nested(branch) for branch in down.branches],
    }


def _plain(node: "Node") -> dict[str, Any]:
    return {"id": node.id, "kind": node.kind, "label": node.label, **{k: v for k, v in node.details.items() if k != "kind"}} | (
        {"run_kind": node.details["kind"]} if "kind" in node.details else {}
    )


def _nested(branch: "Branch") -> dict[str, Any]:
    further = {"shown_above": True} if branch.shown_above else {"branches": [_nested(behind) for behind in branch.branches]}
    return {"role": branch.role, "path": branch.label, "node": _plain(branch.node)} | further


def _print(found: "Found", up: "Branch", down: "Branch") -> None:
    console = Console(highlight=False)
    if not console.is_terminal:  # in a file or a pipe nothing is gained by wrapping lines
        console = Console(highlight=False, width=_WIDE)
    if found.mismatch is not None:
        console.print(f"[red]{escape(found.mismatch)}[/]")
    console.print(_line(up))
    for note in found.notes:
        console.print(f"[yellow]{escape(note)}[/]")
    for title, branch in (("made from", up), ("used by", down)):
        tree = Tree(f"[bold]{title}[/]")
        _grow(tree, branch, code=branch is up)
        if not branch.branches:
            tree.add("[dim]nothing that is recorded[/]")
        console.print(tree)


def _grow(tree: Tree, branch: "Branch", code: bool = True) -> None:
    if code and branch.node.kind == "run" and "commit" in branch.node.details and not branch.shown_above:
        dirty = " with uncommitted changes" if branch.node.details["dirty"] else ""
        tree.add(f"[dim]code[/] commit {branch.node.details['commit'][:_SHORT]}{dirty}")
    records = [behind for behind in branch.branches if behind.role == "record" and not behind.branches]
    for behind in branch.branches:
        if behind not in records:
            _grow(tree.add(f"[dim]{escape(behind.role)}[/] {_line(behind)}"), behind, code)
    if records:
        tree.add(f"[dim]records[/] {escape(', '.join(Path(behind.label).name for behind in records))}")


def _line(branch: "Branch") -> str:
    """A node in one line."""
    node, known = branch.node, branch.node.details
    digest = known.get("digest") or known.get("params_digest")
    parts = [f"[cyan]{escape(branch.label)}[/]" if node.kind in ("run", "stage", "export") else escape(branch.label)]
    if node.kind in ("stage", "export"):
        parts.append(f"({'DVC stage' if node.kind == 'stage' else 'export'})")
    if digest:
        parts.append(f"[green]{digest[:_SHORT]}[/]")
    if known.get("stage"):
        parts.append(f"stage {escape(known['stage'])}")
    if known.get("status", "finished") != "finished":
        parts.append(f"[red]{known['status']}[/]")
    parts += [f"{name} {value:.4g}" for name, value in known.get("metrics", {}).items()]
    if known.get("place", "here") != "here":
        parts.append(f"in {escape(known['place'])}")
    if branch.shown_above:
        parts.append("[dim](above)[/]")
    return "  ".join(parts)


def _mermaid(graph: "Graph", found: "Found", up: "Branch", down: "Branch") -> str:
    """The whole answer as a flow chart from left to right."""
    shown = {branch.node.id: branch for root in (up, down) for branch in reversed(list(root.walk()))}
    names = {node: f"n{number}" for number, node in enumerate(shown)}
    lines = ["flowchart LR", *(f"  %% {note}" for note in (found.mismatch, *found.notes) if note)]
    for node, branch in shown.items():
        digest = branch.node.details.get("digest")
        text = branch.label + (f"<br/>{digest[:_SHORT]}" if digest else "")
        lines.append(f"  {names[node]}" + _SHAPES.get(branch.node.kind, '["{}"]').format(text.replace('"', "'")))
    for link in graph.links:
        if link.source in shown and link.target in shown:
            lines.append(f'  {names[link.source]} -->|"{link.role}"| {names[link.target]}')
    lines.append(f"  style {names[up.node.id]} stroke-width:4px")
    return "\n".join(lines)
