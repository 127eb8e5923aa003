"""Keeps secrets out of a YAML text that a run writes, in whatever way the text quotes, escapes or folds them."""

from typing import Any

from tunix_lab.lab.record.redaction import Redactor
from tunix_lab.spec.render import to_yaml


def redacted_yaml(text: str, redactor: Redactor) -> str:
    """`text` without secrets. Only where replacing them in the text is not enough is its data written anew, without comments."""
    from ruamel.yaml.error import YAMLError

    data = _loaded(text)
    clean, replaced = redactor.tree(data), redactor.text(text)
    try:
        if clean == data or _loaded(replaced) == clean:
            return replaced
    except YAMLError:  # the replacement has broken its syntax
        pass
    return redactor.text(to_yaml(clean))


def _loaded(text: str) -> Any:
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.composer.warn_double_anchors = False  # as where specs are read
    return yaml.load(text)
