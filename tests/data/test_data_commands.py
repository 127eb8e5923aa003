"""`tunix-lab data …`: the datasets and tokenizer on disk, and the view of what is trained."""

import json

import pytest
import typer
from typer.testing import CliRunner

from tunix_lab.cli import data
from tunix_lab.data.tokenizer import Tokenizer
from tunix_lab.errors import UserError

SPEC = """
name: look
model: {{family: gemma3, size: nano, init: {{kind: random}}}}
tokenizer: {{path: tokenizer}}
algorithm: {algorithm}
data: {data}
optimizer: {{kind: adamw, learning_rate: 1.0e-3}}
training: {{max_steps: 10, batch_size: 8, eval_every: 5, eval_batch_size: 8}}
tracking: {{experiment: look, primary_metric: eval/loss, higher_is_better: false}}
"""
CHAT = "{{kind: chat, train: rows/sft/{0}.jsonl, validation: rows/sft/validation.jsonl, max_length: 64}}"
PAIRS = "{{kind: preference, train: rows/preference/{0}.jsonl, validation: rows/preference/validation.jsonl}}"
TEXT = "{{kind: text, train: rows/pretrain/{0}.jsonl, validation: rows/pretrain/validation.jsonl, max_length: 80}}"
DPO = "{kind: dpo, max_prompt_length: 48, max_response_length: 32}"


@pytest.fixture(scope="module")
def app():
    app = typer.Typer()
    for command in (data.arithmetic, data.tokenizer, data.show):
        app.command()(command)
    return app


@pytest.fixture(scope="module")
def home(app, tmp_path_factory):
    home = tmp_path_factory.mktemp("project")
    sizes = ["--train", "40", "--validation", "5", "--test", "5"]
    made = CliRunner().invoke(app, ["arithmetic", "--out", str(home / "rows"), *sizes], catch_exceptions=False)
    assert made.exit_code == 0 and f"{home / 'rows/sft/train.jsonl'}: 40 rows" in made.output.replace("\n", "")
    corpora = [flag for name in ("sft", "pretrain") for flag in ("--corpus", str(home / f"rows/{name}/train.jsonl"))]
    arguments = ["tokenizer", *corpora, "--vocab-size", "500", "--out", str(home / "tokenizer")]
    made = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert made.exit_code == 0 and " ids, sha256 " in made.output
    return home


@pytest.fixture
def show(app, home, monkeypatch, tmp_path):
    monkeypatch.setenv("TUNIX_LAB_HOME", str(home))

    def run(kind: str, *arguments: str, algorithm: str = "{kind: sft}") -> str:
        path = tmp_path / "spec.yaml"
        path.write_text(SPEC.format(algorithm=algorithm, data=kind.format("train")), "utf-8")
        result = CliRunner().invoke(app, ["show", str(path), *arguments], catch_exceptions=False)
        assert result.exit_code == 0
        return result.output

    return run


def first_row(home, name):
    return json.loads((home / f"rows/{name}/train.jsonl").read_text("utf-8").splitlines()[0])


def between_brackets(line):
    return line.split("⟦")[1].split("⟧")[0].replace("│", "")


def test_chat(show, home):
    lines = show(CHAT, "-n", "2").splitlines()
    assert lines[0] == f"{home}/rows/sft/train.jsonl:1" and lines[3] == f"{home}/rows/sft/train.jsonl:2"
    assert between_brackets(lines[2]) == first_row(home, "sft")["completion"] + "<end_of_turn>"
    assert lines[2].strip().startswith("<bos>│<start_of_turn>│user│⏎│")
    trained = lines[2].split("⟦")[1].split("⟧")[0].count("│") + 1
    assert f" {trained} trained, " in lines[1]
    assert lines[-1].startswith("train: rows_in 2, ")


def test_pairs(show, home):
    lines = show(PAIRS, "-n", "1", algorithm=DPO).splitlines()
    row = first_row(home, "preference")
    assert "⟦" not in lines[2]
    assert between_brackets(lines[4]) == row["chosen"] + "<end_of_turn>"
    assert between_brackets(lines[6]) == row["rejected"] + "<end_of_turn>"


def test_text_and_split_and_override(show, home):
    assert between_brackets(show(TEXT, "-n", "1").splitlines()[2]) == first_row(home, "pretrain")["text"] + "<eos>"
    assert "validation.jsonl:1" in show(TEXT, "-n", "1", "--split", "validation")
    assert "rows_cut 1" in show(TEXT, "-n", "1", "--set", "data.max_length=9", "--set", "data.overlong=truncate")


def test_mistakes(show, home):
    with pytest.raises(UserError, match="no split 'test': a spec has train, validation"):
        show(CHAT, "--split", "test")
    with pytest.raises(UserError, match=r"1 of 1 rows are longer than data\.max_length = 9"):
        show(CHAT, "-n", "1", "--set", "data.max_length=9")
    with pytest.raises(UserError, match=r"nothing\.jsonl: no such file"):
        show(CHAT, "--set", "data.train=nothing.jsonl")


def test_tokenizer_folder_is_complete(home):
    tokenizer = Tokenizer.load(home / "tokenizer")
    assert tokenizer.end_of_turn_id in tokenizer.stop_ids
