"""Templates have what Hugging Face gives them, and nothing that depends on the day."""

import pytest

from tunix_lab.data.chat_template import ChatTemplate
from tunix_lab.errors import UserError


def render(template, variables=(), **fixed):
    return ChatTemplate.compile(template).render(dict(variables), **fixed)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{% for x in [1, 2, 3] %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}", "1"),
        ("{% for x in [1, 2, 3] %}{% if x == 2 %}{% continue %}{% endif %}{{ x }}{% endfor %}", "13"),
        ("{{ {'b': 'é <b> & \\'', 'a': [1, none]} | tojson }}", """{"b": "é <b> & '", "a": [1, null]}"""),
        ("{{ {'b': 1, 'a': 2} | tojson(separators=(',', ':'), sort_keys=true) }}", '{"a":2,"b":1}'),
        ("{{ [1] | tojson(indent=1) }}", "[\n 1\n]"),
        ("{{ ['é'] | tojson(ensure_ascii=true) }}", '["\\u00e9"]'),
        ("<{% generation %}{{ 'x' }}\ny{% endgeneration %}>", "<x\ny>"),
        ("{% set a = 1 %}{% generation %}{% set a = 2 %}{{ a }}{% endgeneration %}{{ a }}", "21"),
        ("  {% if true %}\n a\n  {% endif %}\nb\n", " a\nb"),
        ("{{ tools is none }} {{ documents is none }} {{ 'yes' if tools or documents else 'no' }}", "True True no"),
        ("{{ strftime_now('%Y') if strftime_now is defined else '2024' }}", "2024"),
    ],
)
def test_what_templates_can_do(template, text):
    assert render(template) == text


def test_variables_are_the_templates_own():
    assert render("{{ a }}{{ tools }}", {"a": 1, "tools": 2}) == "12"
    assert render("{% if not a is defined %}{% set a = 1 %}{% endif %}{{ a }}", {"a": 2}) == "2"
    with pytest.raises(UserError, match="the template has no use for b, c; it reads a"):
        render("{{ a }}{{ d }}", {"c": 1, "b": 2}, d=3)
    with pytest.raises(UserError, match="has no use for d; it reads a"):
        render("{{ a }}{{ d }}", {"d": 1}, d=3)
    with pytest.raises(UserError, match="has no use for strftime_now; it reads nothing"):
        render("{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% endif %}", {"strftime_now": str})
    with pytest.raises(UserError, match="has no use for a; it reads nothing but the messages"):
        render("", {"a": 1})


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no such role') }}", "the template refuses these messages: no such role"),
        ("{{ 'a' + none }}", "the template refuses these messages: can only concatenate"),
        ("{{ nothing.at.all }}", "the template refuses these messages: 'nothing' is undefined"),
        ("\n{% generation %}", r"chat_template\.jinja:2: "),
        ("{% nope %}", r"chat_template\.jinja:1: .*'nope'"),
    ],
)
def test_mistakes_are_one_message(template, message):
    with pytest.raises(UserError, match=message):
        render(template)
