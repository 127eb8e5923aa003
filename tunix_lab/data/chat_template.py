"""A chat template: Jinja text, compiled in a sandbox that has what Hugging Face gives to templates, so that theirs render alike.

`strftime_now`, which Hugging Face has too, is left out on purpose: a prompt that says today's date would be another one tomorrow,
and no run could be repeated. Templates that ask for it ask first whether it is there, and fall back to a fixed date.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from tunix_lab.errors import UserError


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A compiled template.

    Attributes:
      names: the variables that it reads and does not set.
    """

    _template: jinja2.Template
    names: frozenset[str]

    @staticmethod
    @functools.lru_cache(maxsize=8)
    def compile(text: str) -> "ChatTemplate":
        """The template that `text` writes; a pure function of it. Raises UserError with the line of a mistake."""
        environment = _environment()
        try:
            names = jinja2.meta.find_undeclared_variables(environment.parse(text))
            return ChatTemplate(environment.from_string(text), frozenset(names))
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"chat_template.jinja:{error.lineno}: {error.message}") from error

    def render(self, variables: Mapping[str, Any], **fixed: Any) -> str:
        """The text.

        Args:
          variables: the caller's own, which the template must know.
          **fixed: what every template is given.

        Raises:
          UserError: the template refuses what it is given, or reads no variable of such a name.
        """
        free = self.names - fixed.keys() - {"raise_exception", "strftime_now"}
        unknown = sorted(variables.keys() - free)
        if unknown:
            known = ", ".join(sorted(free)) or "nothing but the messages"
            raise UserError(f"chat: the template has no use for {', '.join(unknown)}; it reads {known}")
        given = {"tools": None, "documents": None, **variables, **fixed}  # none, not undefined, as templates of tools expect
        try:
            return self._template.render(given)
        except (jinja2.TemplateError, TypeError) as error:  # TypeError: it adds text and none, for one
            raise UserError(f"chat: the template refuses these messages: {error}") from error


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %} … {% endgeneration %}` marks what an assistant says. Masks come from spans: it just renders its body."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """The body in a scope of its own."""
        line = next(parser.stream).lineno
        return jinja2.nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _environment() -> jinja2.Environment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationBlock]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    return environment


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON as a model reads it: Jinja's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
