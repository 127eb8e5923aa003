"""`tunix-lab data …`: the datasets and tokenizer on disk, and the view of what is trained."""

import json
import re

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
PROMPTS = "{{kind: prompts, train: rows/sft/{0}.jsonl, validation: rows/sft/validation.jsonl, overlong: drop}}"
GRPO = (
    "{kind: grpo, rollout: {max_new_tokens: 8, max_prompt_length: 48}, "
    "rewards: {functions: [{function: 'tunix_lab.tasks.arithmetic:exact_match'}]}}"
)
DPO = "{kind: dpo, max_prompt_length: 48, max_response_length: 32}"


@pytest.fixture(scope="module")
def app():
    app = typer.Typer()
    for command in (data.arithmetic, data.gsm8k, data.tokenizer, data.show_data):
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
        result = CliRunner().invoke(app, ["show-data", str(path), *arguments], catch_exceptions=False)
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


def test_prompts(show, home):
    """Nothing is trained of a prompt; it ends where the answer would begin."""
    primary = ("--set", "tracking.primary_metric=eval/reward")
    lines = show(PROMPTS, "-n", "1", *primary, algorithm=GRPO).splitlines()
    prompt = first_row(home, "sft")["prompt"]
    drawn = lines[2].strip().replace("│", "")
    assert drawn == f"<bos><start_of_turn>user⏎{prompt}<end_of_turn>⏎<start_of_turn>model⏎" and "⟦" not in lines[2]
    tokens = lines[2].count("│") + 1
    assert lines[1] == f"  prompt: {tokens} tokens, 0 trained, {48 - tokens} padding"
    assert lines[-1].startswith("train: rows_in 1, ") and f" context {tokens}," in lines[-1]
    short = ("-n", "40", "--set", f"algorithm.rollout.max_prompt_length={tokens}")
    assert re.search(r"rows_dropped [1-9]", show(PROMPTS, *primary, *short, algorithm=GRPO).splitlines()[-1])


def test_text_and_split_and_override(show, home):
    assert between_brackets(show(TEXT, "-n", "1").splitlines()[2]) == first_row(home, "pretrain")["text"] + "<eos>"
    assert "validation.jsonl:1" in show(TEXT, "-n", "1", "--split", "validation")
    assert "rows_cut 1" in show(TEXT, "-n", "1", "--set", "data.max_length=9", "--set", "data.overlong=truncate")


def test_packed_rows_show_their_segments(show, home):
    lines = show(CHAT, "-n", "1", "--set", "data.packing=true", "--set", "data.max_length=200").splitlines()
    title = re.fullmatch(r"packed row 1: (\d+) segments, (\d+) tokens, (\d+) padding", lines[0])
    segments, tokens, padding = map(int, title.groups())
    assert segments >= 3 and tokens + padding == 200
    rows = [json.loads(line) for line in (home / "rows/sft/train.jsonl").read_text("utf-8").splitlines()]
    seen = 0
    for number in range(segments):
        head, drawn = lines[1 + 2 * number : 3 + 2 * number]
        found = re.fullmatch(rf"  segment {number + 1}: (\d+) tokens, \d+ trained, {home}/rows/sft/train\.jsonl:(\d+)", head)
        seen += int(found[1])
        assert drawn.strip().startswith("<bos>") and drawn.count("<bos>") == 1
        assert between_brackets(drawn) == rows[int(found[2]) - 1]["completion"] + "<end_of_turn>"
    assert seen == tokens and lines[1 + 2 * segments].startswith("train: rows_in 40, ")


def test_mixtures_show_their_sources(show, home):
    mixed = "data.train=[{path: rows/sft/train.jsonl, weight: 2}, {path: rows/sft/test.jsonl, weight: 0.5}]"
    lines = show(CHAT, "-n", "2", "--set", mixed).splitlines()
    assert lines[0] == "train.0: rows/sft/train.jsonl, weight 2" and lines[1] == f"{home}/rows/sft/train.jsonl:1"
    second = lines.index("train.1: rows/sft/test.jsonl, weight 0.5")
    assert lines[second - 1].startswith("train.0: rows_in 2, ") and lines[second + 1] == f"{home}/rows/sft/test.jsonl:1"
    assert lines[-2].startswith("train.1: rows_in 2, ") and lines[-1].startswith("train: rows_in 4, ")
    plain = show(CHAT, "-n", "1", "--set", "data.train=[rows/sft/train.jsonl, rows/sft/test.jsonl]")
    assert plain.startswith("train.0: rows/sft/train.jsonl, every row once an epoch\n")


def test_rows_held_out(show, home):
    shown = [show(CHAT, "-n", "40", "--split", split, "--set", "data.validation={rows: 10}") for split in ("train", "validation")]
    lines = [set(re.findall(r"^.*train\.jsonl:\d+$", text, re.MULTILINE)) for text in shown]
    assert len(lines[0]) == 30 and len(lines[1]) == 10 and not lines[0] & lines[1]


def test_gsm8k(app, tmp_path):
    row = {"question": "How many?", "answer": "4/2=<<4/2=2>>2\n#### 2"}
    solutions = {"a": {"solution": "x\nA: 2"}, "b": {"solution": "x\nA: 3"}}
    files = {"train": row, "test": row, "example_model_solutions": row | {"ground_truth": "A: 2"} | solutions}
    for name, content in files.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(content) + "\n")
    for flags, steps in (([], "4/2=2"), (["--keep-annotations"], "4/2=<<4/2=2>>2")):
        arguments = ["gsm8k", "--source", str(tmp_path), "--out", str(tmp_path / "out"), *flags]
        made = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert made.exit_code == 0 and "preference/train.jsonl: 1 rows" in made.output.replace("\n", "")
        assert steps in json.loads((tmp_path / "out/sft/test.jsonl").read_text())["completion"]


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
