"""Secrets are found by the name of their variable, by their shape and in addresses; what only looks like one is left alone."""

import pytest

from tunix_lab.lab.record.redaction import REDACTED, Redactor, is_key_file, is_secret_name

LETTERS = "aB3dE5gH7jK9mN1pQ3sT5vX7zA2cF4hJ6lM8"
# Joined here, so that no scanner takes this file for a leak.
TOKENS = [
    "hf_" + LETTERS[:34],
    "ghp_" + LETTERS,
    "github_pat_" + LETTERS + "_" + LETTERS,
    "glpat-" + LETTERS[:20],
    "sk-" + LETTERS,
    "sk-proj-" + LETTERS + "-" + LETTERS,
    "AKIA" + "IOSFODNN7EXAMPLE",
    "xoxb-" + "123456789012-" + LETTERS,
    "AIza" + LETTERS[:35],
    "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0In0." + LETTERS,
]
KEY = "-----BEGIN {0} KEY-----\n" + LETTERS + "\n" + LETTERS + "\n-----END {0} KEY-----"


@pytest.mark.parametrize("token", TOKENS, ids=lambda token: token[:6])
@pytest.mark.parametrize("text", ["{}", "x = '{}'\n", "token: {}, other", "(+{})"])
def test_tokens_are_known_by_their_shape(token, text):
    assert Redactor({}).text(text.format(token)) == text.format(REDACTED)


@pytest.mark.parametrize("kind", ["RSA PRIVATE", "PRIVATE", "OPENSSH PRIVATE", "EC PRIVATE"])
def test_private_keys_go_whole(kind):
    assert Redactor({}).text(f"a\n{KEY.format(kind)}\nb") == f"a\n{REDACTED}\nb"
    assert LETTERS not in Redactor({}).text(KEY.format(kind)[:-30])  # also one that was cut off
    assert Redactor({}).text("ssh-rsa AAAA public") == "ssh-rsa AAAA public"


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("https://mia:pa55@host/repo.git", f"https://{REDACTED}@host/repo.git"),
        ("https://token1234@host/x and more", f"https://{REDACTED}@host/x and more"),
        ("postgresql+psycopg://u:p@h:5432/db", f"postgresql+psycopg://{REDACTED}@h:5432/db"),
        ("http://h/x?access_token=abc&n=1", f"http://h/x?access_token={REDACTED}&n=1"),
        ("http://h/x?n=1&sig=abc#top", f"http://h/x?n=1&sig={REDACTED}#top"),
    ],
)
def test_credentials_in_addresses(text, result):
    assert Redactor({}).text(text) == result


@pytest.mark.parametrize(
    "text",
    [
        "ssh://git@github.com/a/b",
        "git@github.com:a/b.git",
        "https://example.org/a@b",
        "http://h/?max_new_tokens=8",
        "risk-" + LETTERS,
        "task-aware-learning-with-longer-names",
        "self_" + LETTERS,
        "max_new_tokens: 8",
        "0123456789abcdef" * 4,
        "mail mia@example.org",
    ],
)
def test_what_is_no_secret_stays(text):
    assert Redactor({}).text(text) == text


def test_values_that_the_environment_calls_secret():
    redactor = Redactor(
        {"HF_TOKEN": "correct-horse", "DB_PASSWORD": "correct-horse-battery", "EDITOR": "nano-editor", "A_KEY": "x"}
    )
    assert redactor.text("a correct-horse-battery, correct-horse, nano-editor, x") == f"a {REDACTED}, {REDACTED}, nano-editor, x"
    assert Redactor({"USE_TOKEN": "false", "OTHER_TOKEN": "  "}).text("false  ") == "false  "


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        *(
            (name, True)
            for name in ("HF_TOKEN", "hf_token", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "OPENAI_APIKEY", "PGPASSWORD")
        ),
        *((name, True) for name in ("GOOGLE_APPLICATION_CREDENTIALS", "MLFLOW_TRACKING_PASSWORD", "GITHUB_TOKEN_2", "KEY")),
        *(
            (name, False)
            for name in ("TOKENIZERS_PARALLELISM", "max_new_tokens", "KEYBOARD", "MONKEY", "PWD", "tokenizer", "PATH")
        ),
    ],
)
def test_names(name, secret):
    assert is_secret_name(name) is secret


def test_bytes_and_trees_and_arguments():
    redactor = Redactor({"MY_SECRET": "pässword1"})
    assert redactor.data("pässword1 ".encode() + b"\xff\x00\n") == REDACTED.encode() + b" \xff\x00\n"
    assert redactor.holds_secret(b"x " + TOKENS[0].encode()) and not redactor.holds_secret(b"\x00\xff")
    tree = {"a": [TOKENS[0], 1, None, {"b": "pässword1"}], TOKENS[0][:5]: True}
    assert redactor.tree(tree) == {"a": [REDACTED, 1, None, {"b": REDACTED}], TOKENS[0][:5]: True}
    named = {"tags": {"api_token": "short", "use_token": "true", "tokens": "8", "keys": 1}, "my.password": "x"}
    kept = {"use_token": "true", "tokens": "8", "keys": 1}
    assert redactor.tree(named) == {"tags": {"api_token": REDACTED} | kept, "my.password": REDACTED}
    assert redactor.argument("tracking.tags.api_token=short") == f"tracking.tags.api_token={REDACTED}"
    assert redactor.argument("--set=tracking.tags.api_token=short") == f"--set=tracking.tags.api_token={REDACTED}"
    assert redactor.argument("samples.max_new_tokens=8") == "samples.max_new_tokens=8"
    assert redactor.argument("a=" + TOKENS[1]) == f"a={REDACTED}"


@pytest.mark.parametrize("text", [*TOKENS, "https://u:p@h/", "http://h?token=abc", KEY.format("PRIVATE")])
def test_twice_is_once(text):
    redactor = Redactor({"SOME_KEY": "redacted"})
    assert Redactor({}).text(Redactor({}).text(text)) == Redactor({}).text(text)
    assert text not in redactor.text(text)


def test_key_files():
    assert all(
        map(is_key_file, [".env", "a/.env.local", "prod.env", "x/id_rsa", "tls/server.pem", ".netrc", "my-service-account.json"])
    )
    assert not any(map(is_key_file, ["environment.py", "envelope.txt", "keys.py", "data/rows.jsonl", "tokenizer.json"]))
