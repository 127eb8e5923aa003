"""Keeps secrets out of what a run writes: values the environment calls secret, tokens by their shape, passwords in addresses."""

import fnmatch
import json
import os
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

REDACTED = "<redacted>"

_SECRET_NAME = re.compile(
    r"SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|TOKEN(?!S|I[SZ])|API_?KEY|(?<![A-Z])KEYS?(?![A-Z])", re.IGNORECASE
)
_SHORTEST = 6  # a value of fewer characters is found in every text, and taking it out would ruin them
_NOT_SECRET = {"true", "false", "default", "enabled", "disabled"}
_SWITCHES = _NOT_SECRET | {"", "0", "1"}  # what a variable may say whose name only sounds like a secret
# (what every match contains, pattern, replacement): a text without the former is not searched, which is most of the time.
_SHAPES = tuple(
    (marker, re.compile(pattern, re.DOTALL), replacement)
    for marker, pattern, replacement in (
        ("PRIVATE KEY", r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----|\Z)", REDACTED),
        ("hf_", r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{20,}", REDACTED),
        ("gh", r"(?<![A-Za-z0-9])gh[pousr]_[A-Za-z0-9]{20,}", REDACTED),
        ("github_pat_", r"(?<![A-Za-z0-9])github_pat_[A-Za-z0-9_]{20,}", REDACTED),
        ("glpat-", r"(?<![A-Za-z0-9])glpat-[A-Za-z0-9_-]{20,}", REDACTED),
        ("sk-", r"(?<![A-Za-z0-9_-])sk-[A-Za-z0-9_-]{20,}", REDACTED),
        ("AKIA", r"(?<![A-Za-z0-9])AKIA[0-9A-Z]{16}(?![0-9A-Z])", REDACTED),
        ("ASIA", r"(?<![A-Za-z0-9])ASIA[0-9A-Z]{16}(?![0-9A-Z])", REDACTED),
        ("xox", r"(?<![A-Za-z0-9])xox[a-z]-[A-Za-z0-9-]{10,}", REDACTED),
        ("AIza", r"(?<![A-Za-z0-9])AIza[A-Za-z0-9_-]{35}", REDACTED),
        ("eyJ", r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}", REDACTED),
        ("://", r"([A-Za-z][A-Za-z0-9+.-]{0,30}://)(?!git@|<redacted>@)[^\s/@\"'`<>]+@", rf"\g<1>{REDACTED}@"),
        (
            "=",
            r"(?i)([?&](?:[a-z0-9_-]{0,40}(?:token|secret|password|signature|credential)|sig|api_?key)=)(?!<redacted>)[^\s&\"'`<>#]+",
            rf"\g<1>{REDACTED}",
        ),
    )
)
_KEY_FILES = (
    *(".env*", "*.env", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx", "*.ppk", "*.gpg"),
    *("id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", ".netrc", "_netrc", ".pypirc", ".npmrc", ".git-credentials"),
    *(".htpasswd", "kubeconfig", "credentials", "credentials.*", "secrets.*", "*service-account*.json", "*service_account*.json"),
)


class Redactor:
    """Takes secrets out of texts; the same text gives the same result.

    Args:
      environment: variables whose values are secret where their name says so.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        values = {value.strip() for name, value in environment.items() if is_secret_name(name)}
        values = {value for value in values if len(value) >= _SHORTEST and value.lower() not in _NOT_SECRET}
        values |= {written for value in values for written in _escaped(value)}
        # The longest first: one value may be a part of another.
        self._values = sorted(values, key=lambda value: (-len(value), value))

    @classmethod
    def of_process(cls) -> "Redactor":
        """The one that knows the secrets of this process's environment."""
        return cls(os.environ)

    def text(self, text: str) -> str:
        """`text` with `<redacted>` in place of every secret."""
        for value in self._values:
            text = text.replace(value, REDACTED)
        for marker, pattern, replacement in _SHAPES:
            if marker in text:
                text = pattern.sub(replacement, text)
        return text

    def data(self, data: bytes) -> bytes:
        """The same for bytes of any encoding that keeps ASCII as it is."""
        return self.text(data.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")

    def tree(self, value: Any) -> Any:
        """The same for every text in nested mappings and lists, keys excepted; a key may say that its text is secret."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {key: REDACTED if _is_told_secret(key, item) else self.tree(item) for key, item in value.items()}
        return [self.tree(item) for item in value] if isinstance(value, list | tuple) else value

    def argument(self, argument: str) -> str:
        """A word of a command line; in `name=value` the name may say that the value is secret."""
        for equals in re.finditer("=", argument):
            name = re.split(r"[.=\s]", argument[: equals.start()])[-1]
            if is_secret_name(name):
                return f"{argument[: equals.end()]}{REDACTED}"
        return self.text(argument)

    def holds_secret(self, data: bytes) -> bool:
        """Whether something would be taken out of `data`."""
        return self.data(data) != data


def is_secret_name(name: str) -> bool:
    """Whether the name of a variable says that its value is secret: HF_TOKEN, but not TOKENIZERS_PARALLELISM."""
    return _SECRET_NAME.search(name) is not None


def _is_told_secret(key: Any, value: Any) -> bool:
    return isinstance(key, str) and isinstance(value, str) and is_secret_name(key) and value.strip().lower() not in _SWITCHES


def _escaped(value: str) -> set[str]:
    """How JSON, double and single quotes of YAML, and Python write `value`."""
    written = {json.dumps(value, ensure_ascii=ascii)[1:-1] for ascii in (True, False)}
    return written | {value.replace("'", "''"), repr(value)[1:-1]}


def is_key_file(path: str) -> bool:
    """Whether a file of this name holds secrets by custom, whatever its content looks like."""
    name = PurePosixPath(path).name
    return any(fnmatch.fnmatch(name, pattern) for pattern in _KEY_FILES)
