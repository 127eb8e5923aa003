"""`tunix-lab schema`: the JSON Schema of spec files."""

import json

import typer


def schema() -> None:
    """Print the JSON Schema of spec files, for editors."""
    from tunix_lab.spec.json_schema import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))
