"""Fills a page of this package: everything that comes from a run is escaped, and nothing is loaded from elsewhere."""

import time
from pathlib import Path
from typing import Any

from tunix_lab.lab.pages.headline import duration, number, size
from tunix_lab.lab.pages.plots import COLOURS
from tunix_lab.lab.record.jsonl import write_atomically

TEMPLATES = Path(__file__).with_name("templates")
_MAX_CHARACTERS = 2000  # of a completion


def write_page(file: Path, template: str, **content: Any) -> None:
    """Writes the page that `template` makes of `content` to `file`, whose folder is made if missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, render(template, **content).encode("utf-8", "replace"))


def render(template: str, **content: Any) -> str:
    """The page that `template` makes of `content`. SVG alone is taken as it is; it is passed through `|safe` there."""
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "number": number,
        "duration": duration,
        "size": size,
        "when": _when,
        "shorten": _shorten,
        "plain": _plain,
    }
    return environment.get_template(template).render(colours=COLOURS, **content)


def _when(unix_ms: int | None) -> str:
    """A time in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(unix_ms / 1000)) if unix_ms else "–"


def _shorten(text: Any, limit: int = _MAX_CHARACTERS) -> str:
    text = str(text)
    return text if len(text) <= limit else f"{text[:limit]} … ({len(text) - limit:,} more characters)"


def _plain(value: Any) -> str:
    """A value of a spec as YAML would have it."""
    if value is None or value in ({}, [], ""):
        return "–"
    return str(value).lower() if isinstance(value, bool) else str(value)
