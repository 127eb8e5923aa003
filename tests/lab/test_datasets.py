"""The data of a spec: sources of every kind, columns, weights, the part held out, packing, and a ledger that misses no token."""

import csv
import itertools
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tunix_lab.data.chat import render_chat, render_prompt
from tunix_lab.data.order import Share
from tunix_lab.data.rows import place_of
from tunix_lab.data.tokenizer_training import train_tokenizer
from tunix_lab.errors import UserError
from tunix_lab.lab import sources
from tunix_lab.lab.build import build_data
from tunix_lab.lab.datasets import Dataset, load_dataset
from tunix_lab.lab.prompts import make_prompts, sample_prompts
from tunix_lab.lab.record.git_state import GitState
from tunix_lab.lab.record.manifest import digest_inputs, make_manifest
from tunix_lab.lab.sources import data_files, project_paths
from tunix_lab.lab.versioning import file_md5
from tunix_lab.spec import ExperimentSpec
from tunix_lab.spec.training import SamplesSpec
from tunix_lab.tasks import arithmetic, word_problems

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def rows():
    return arithmetic.sft_rows(word_problems.split_problems(0)["train"], "train", 120, seed=0)


@pytest.fixture(scope="module")
def home(rows, tmp_path_factory):
    """A project with the same kind of rows in three formats, under foreign names in two of them."""
    home = tmp_path_factory.mktemp("project")
    parts = {"a": rows[:60], "b": rows[60:90], "c": rows[90:]}
    (home / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in parts["a"]), "utf-8")
    foreign = [{"question": row["prompt"], "answer": row["completion"]} for row in parts["b"]]
    pq.write_table(pa.Table.from_pylist(foreign), home / "b.parquet")
    with open(home / "c.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["q", "completion"])
        writer.writeheader()
        writer.writerows({"q": row["prompt"], "completion": row["completion"]} for row in parts["c"])
    train_tokenizer(rows, 400, home / "tokenizer")
    return home


@pytest.fixture(scope="module")
def tokenizer(home):
    from tunix_lab.data.tokenizer import Tokenizer

    return Tokenizer.load(home / "tokenizer")


A, B = "a.jsonl", {"path": "b.parquet", "columns": {"prompt": "question", "completion": "answer"}}
C = {"path": "c.csv", "columns": {"prompt": "q"}}
ALL = [A, B, C]


def spec_of(seed: int = 0, **data) -> ExperimentSpec:
    return ExperimentSpec.model_validate(
        {
            "name": "data",
            "seed": seed,
            "model": {"family": "gemma3", "size": "nano", "init": {"kind": "random"}},
            "tokenizer": {"path": "tokenizer"},
            "algorithm": {"kind": "sft"},
            "data": {"kind": "chat", "train": "a.jsonl", "validation": "a.jsonl", "max_length": 64} | data,
            "optimizer": {"learning_rate": 1e-3},
            "training": {"max_steps": 10, "batch_size": 8, "micro_batch_size": 4, "eval_batch_size": 8},
            "tracking": {"experiment": "test"},
        }
    )


def texts(dataset):
    return [row["prompt"] for row in dataset.rows]


def test_sources_of_every_format_and_their_columns(home, tokenizer, rows):
    dataset = load_dataset(spec_of(train=ALL), home, "train", tokenizer)
    assert texts(dataset) == [row["prompt"] for row in rows]
    assert [part.file.key for part in dataset.parts] == ["train.0", "train.1", "train.2"]
    places = [place_of(part.rows, 1) for part in dataset.parts]
    assert places == [f"{home}/a.jsonl:2", f"{home}/b.parquet:row 2", f"{home}/c.csv:3"]
    assert dataset.mixture() is None  # without weights: one dataset, every row once an epoch
    assert len(dataset.examples) == 120


def test_columns_of_the_data_hold_for_every_source_that_has_none(home, tokenizer):
    columns = {"prompt": "question", "completion": "answer"}
    shared = load_dataset(spec_of(train="b.parquet", columns=columns), home, "train", tokenizer)
    assert shared.rows == load_dataset(spec_of(train=[B]), home, "train", tokenizer).rows
    own = spec_of(train=["b.parquet", C], columns=columns)
    assert len(load_dataset(own, home, "train", tokenizer).rows) == 60
    with pytest.raises(UserError, match=r"c\.csv:2: column 'question' is missing; .*\(and so in 29 more rows\)"):
        load_dataset(spec_of(train={"path": "c.csv", "columns": {"prompt": "question"}}), home, "train", tokenizer)


def test_a_file_of_the_hub(home, tokenizer, monkeypatch):
    asked = []

    def fetch(repo, revision, file):
        asked.append((repo, revision, file))
        return home / "b.parquet"

    monkeypatch.setattr(sources, "fetch_file", fetch)
    hub = {"kind": "hub", "repo": "org/sums", "revision": COMMIT, "file": "data/train.parquet", "columns": B["columns"]}
    spec = spec_of(train=hub)
    dataset = load_dataset(spec, home, "train", tokenizer)
    assert asked == [("org/sums", COMMIT, "data/train.parquet")]
    assert len(dataset.rows) == 30 and project_paths(spec) == ["a.jsonl"]
    inputs = digest_inputs(spec, home, None, tokenizer)
    manifest = _manifest(spec, inputs, home, {"train": 30, "validation": 60})
    assert manifest["datasets"][0] == {
        "name": "org/sums",
        "path": f"org/sums@{COMMIT}/data/train.parquet",
        "digest": file_md5(home / "b.parquet"),
        "context": "train",
        "rows": 30,
    }
    assert manifest["tags"]["lab.data.train"] == file_md5(home / "b.parquet")
    assert "dvc.train" not in manifest["tags"] and manifest["tags"]["dvc.validation"] == file_md5(home / "a.jsonl")


AROUND = {
    "hardware": {"device_count": 1, "device_kind": "cpu"},
    "git": GitState(),
    "command": [],
    "out": "runs/r",
    "chat_template": None,
}


def _manifest(spec, inputs, home, rows):
    return make_manifest(spec, inputs, home=home, run_id="r", parent_run_id=None, rows=rows, **AROUND)


def test_manifest_of_a_plain_spec_and_of_a_mixture(home, tokenizer):
    plain = spec_of()
    inputs = digest_inputs(plain, home, None, tokenizer)
    assert inputs.data == {"train": file_md5(home / "a.jsonl"), "validation": file_md5(home / "a.jsonl")}
    entry = {"name": "", "path": "a.jsonl", "digest": inputs.data["train"], "context": "train", "rows": 60}
    manifest = _manifest(plain, inputs, home, {"train": 60, "validation": 60})
    assert manifest["datasets"] == [entry, entry | {"context": "validation"}]
    assert manifest["tags"]["dvc.train"] == inputs.data["train"]
    mixed = spec_of(train=[A, B])
    inputs = digest_inputs(mixed, home, None, tokenizer)
    assert inputs.data["train.1"] == file_md5(home / "b.parquet")
    manifest = _manifest(mixed, inputs, home, {"train.0": 60, "train.1": 30, "validation": 60})
    assert [(d["path"], d["rows"], d["context"]) for d in manifest["datasets"]] == [
        ("a.jsonl", 60, "train"),
        ("b.parquet", 30, "train"),
        ("a.jsonl", 60, "validation"),
    ]


# ---- the part held out -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("validation", [{"fraction": 0.2}, {"rows": 25}])
def test_both_sides_are_all_rows_and_share_none(home, tokenizer, rows, validation):
    spec = spec_of(train=ALL, validation=validation)
    train, held = (load_dataset(spec, home, split, tokenizer) for split in ("train", "validation"))
    assert sorted(texts(train) + texts(held)) == sorted(row["prompt"] for row in rows)
    assert train.ledger.rows_in + held.ledger.rows_in == 120 and not set(texts(train)) & set(texts(held))
    if "rows" in validation:
        assert held.ledger.rows_in == 25
    # Which rows: the seed says, and neither their order nor their files.
    turned = spec_of(train=ALL[::-1], validation=validation)
    assert set(texts(load_dataset(turned, home, "validation", tokenizer))) == set(texts(held))
    other = spec_of(1, train=ALL, validation=validation)
    assert set(texts(load_dataset(other, home, "validation", tokenizer))) != set(texts(held))
    # A complaint still names the line of the file.
    part = held.parts[0]
    line = int(place_of(part.rows, 0).rpartition(":")[2])
    assert json.loads((home / "a.jsonl").read_text("utf-8").splitlines()[line - 1])["prompt"] == part.rows[0]["prompt"]


def test_a_source_without_rows_to_train_on(home, tokenizer, tmp_path):
    for name in ("tokenizer", "a.jsonl"):
        (tmp_path / name).symlink_to(home / name)
    (tmp_path / "one.jsonl").write_text('{"prompt": "x", "completion": "y"}\n')
    sizes = []
    for seed in range(12):
        spec = spec_of(seed, train=["a.jsonl", "one.jsonl"], validation={"fraction": 0.5})
        try:
            train = load_dataset(spec, tmp_path, "train", tokenizer)
            held = load_dataset(spec, tmp_path, "validation", tokenizer)
            sizes.append((len(train.parts), len(held.parts)))
        except UserError as error:
            assert "one.jsonl: data.validation holds out all of its rows; hold out fewer, or take the file out" in str(error)
            sizes.append("refused")
    assert set(sizes) == {(2, 1), "refused"}


# ---- weights, packing, buckets ---------------------------------------------------------------------------------------------


def test_weights_reach_the_batches(home, tokenizer, rows):
    weighted = [{"path": A, "weight": 1}, {**B, "weight": 3}]
    data = build_data(spec_of(train=weighted), home, tokenizer)
    assert data.train.mixture() == [Share(60, 1.0), Share(30, 3.0)]
    second = {example["input_tokens"].tobytes() for example in data.train.parts[1].examples}
    drawn = [row.tobytes() in second for _ in range(10) for row in next(data.train_batches)["input_tokens"]]
    assert sum(drawn) == 30 and len(drawn) == 40


def test_a_plain_spec_draws_as_ever(home, tokenizer):
    """The first rows of a default spec, as they were before there were mixtures and buckets: committed results depend on them."""
    data = build_data(spec_of(), home, tokenizer)
    number = {example["input_tokens"].tobytes(): i for i, example in enumerate(data.train.examples)}
    drawn = [number[row.tobytes()] for _ in range(4) for row in next(data.train_batches)["input_tokens"]]
    assert drawn == [21, 37, 31, 14, 9, 46, 28, 6, 51, 41, 36, 15, 23, 38, 5, 4]
    assert data.train_batches.get_state() == {"seed": 0, "num_rows": 60, "next_row": 16}
    assert next(iter(data.eval_batches)).keys() == {"input_tokens", "input_mask", "valid"}


def test_packing_reaches_both_splits(home, tokenizer):
    data = build_data(spec_of(train=[A, B], validation={"rows": 30}, packing=True, max_length=128), home, tokenizer)
    for batch in (next(data.train_batches), next(iter(data.eval_batches))):
        assert batch.keys() == {"input_tokens", "input_mask", "valid", "segment_ids", "positions"}
        assert batch["segment_ids"].max() >= 2
    for part in (*data.train.parts, *data.validation.parts):
        assert sorted(row for rows in part.members for row in rows) == list(range(len(part.rows)))
        for example, members in zip(part.examples, part.members, strict=True):
            assert example["segment_ids"].max() == len(members)


def test_buckets_reach_both_splits(home, tokenizer):
    data = build_data(spec_of(train=[A, B], buckets=[48, 56, 64]), home, tokenizer)
    for batches in (itertools.islice(data.train_batches, 40), data.eval_batches):
        widths = {batch["valid"].shape[1] for batch in batches}
        assert widths <= {48, 56, 64} and len(widths) > 1


@pytest.mark.parametrize("overlong", ["drop", "truncate"])
@pytest.mark.parametrize("packing", [False, True])
def test_ledger_conserves_tokens(home, tokenizer, rows, overlong, packing):
    """Through sources, the split and packing: counted anew from rows and arrays."""
    spec = spec_of(train=ALL, validation={"fraction": 0.3}, overlong=overlong, packing=packing, max_length=54)
    both = [load_dataset(spec, home, split, tokenizer) for split in ("train", "validation")]
    for dataset in both:
        for part in dataset.parts:
            assert part.ledger.split == part.file.key
            assert part.ledger.tokens_in == sum(_tokens(tokenizer, row) for row in part.rows)
            assert part.ledger.trained == sum(int(example["input_mask"].sum()) for example in part.examples)
            assert part.ledger.trained + part.ledger.context == sum(int(example["valid"].sum()) for example in part.examples)
        for ledger in (*(part.ledger for part in dataset.parts), dataset.ledger):
            assert ledger.tokens_in == ledger.trained + ledger.context + ledger.cut + ledger.dropped
        for name, count in dataset.ledger.summary().items():
            assert count == sum(part.ledger.summary()[name] for part in dataset.parts)
        kept = [dataset.rows[i] for i in dataset.ledger.kept_rows]
        assert kept == [part.rows[i] for part in dataset.parts for i in part.ledger.kept_rows]
    assert sum(dataset.ledger.tokens_in for dataset in both) == sum(_tokens(tokenizer, row) for row in rows)
    assert sum(dataset.ledger.cut + dataset.ledger.dropped for dataset in both) > 0


def _tokens(tokenizer, row):
    turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
    return len(render_chat(tokenizer, turns).ids)


def test_copies_are_counted_within_a_source_and_over_all(home, tokenizer):
    dataset = load_dataset(spec_of(train=[A, A]), home, "train", tokenizer)
    assert [part.ledger.rows_duplicate for part in dataset.parts] == [0, 0]
    assert dataset.ledger.rows_duplicate == 60 and dataset.ledger.rows_in == 120


def test_rows_without_a_trained_token_are_refused_in_any_source(home, tokenizer, tmp_path):
    for name in ("tokenizer", "a.jsonl"):
        (tmp_path / name).symlink_to(home / name)
    (tmp_path / "empty.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(UserError, match=r"empty\.jsonl:1: column 'prompt' is missing"):
        load_dataset(spec_of(train=["a.jsonl", "empty.jsonl"]), tmp_path, "train", tokenizer)


def test_too_long_a_row_is_told_with_its_source(home, tokenizer):
    with pytest.raises(UserError, match=r"^train\.0: \d+ of 30 rows are longer than data\.max_length = 54; .*b\.parquet:row \d+"):
        load_dataset(spec_of(train=[B, A], max_length=54), home, "train", tokenizer)


def test_first_rows_only(home, tokenizer):
    assert len(load_dataset(spec_of(train=ALL), home, "train", tokenizer, first=2).examples) == 6
    packed = load_dataset(spec_of(train=ALL, packing=True, max_length=128), home, "train", tokenizer, first=2)
    assert packed.ledger.rows_in == 120


# ---- the cache -------------------------------------------------------------------------------------------------------------


def test_cache_gives_the_same_data(home, tokenizer, tmp_path):
    spec = spec_of(train=ALL, validation={"rows": 20}, packing=True, max_length=128)
    fresh = load_dataset(spec, home, "train", tokenizer)
    for _ in range(2):
        kept = load_dataset(spec, home, "train", tokenizer, cache=tmp_path)
        assert kept.ledger == fresh.ledger and [p.members for p in kept.parts] == [p.members for p in fresh.parts]
        for ours, theirs in zip(kept.examples, fresh.examples, strict=True):
            assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    assert len(list(tmp_path.iterdir())) == 3
    load_dataset(spec_of(train=ALL, validation={"rows": 20}, max_length=96), home, "train", tokenizer, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 6  # another length is another dataset
    load_dataset(spec_of(1, train=ALL, validation={"rows": 20}, max_length=96), home, "train", tokenizer, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) > 6  # and so are the rows that another seed leaves


def test_files_by_key(home):
    spec = spec_of(train=[A, B], validation={"rows": 3})
    assert [file.key for file in data_files(spec, home, "train")] == ["train.0", "train.1"]
    assert [file.key for file in data_files(spec, home, "validation")] == ["validation.0", "validation.1"]
    assert [file.key for file in data_files(spec_of(), home, "validation")] == ["validation"]


# ---- prompts of samples --------------------------------------------------------------------------------------------------


def test_prompts_of_a_file_follow_the_columns_of_the_data(home, tokenizer, rows):
    """Also without the column of the answers, and where the file has the names that are read."""
    (home / "asked.csv").write_text("question\na b\n")
    for name, said in (("b.parquet", [r["prompt"] for r in rows[60:62]]), ("asked.csv", ["a b"]), ("a.jsonl", [])):
        spec = spec_of(validation=A, train=A, columns={"prompt": "question", "completion": "answer"})
        spec = spec.model_copy(update={"samples": SamplesSpec(prompts=name, count=2)})
        prompts = sample_prompts(spec, home, Dataset("validation", []), tokenizer)
        assert [prompt.text for prompt in prompts] == (said or [row["prompt"] for row in rows[:2]])
    assert prompts[0].reference == rows[0]["answer"]  # as for the data, what the spec says comes before what the file says
    assert prompts[0].ids.tolist() == render_prompt(tokenizer, rows[0]["prompt"]).tolist()


def test_prompts_of_the_validation_split(home, tokenizer, rows):
    spec = spec_of(validation=[A, B]).model_copy(update={"samples": SamplesSpec(count=62)})
    prompts = sample_prompts(spec, home, load_dataset(spec, home, "validation", tokenizer), tokenizer)
    assert [prompt.text for prompt in prompts] == [row["prompt"] for row in rows[:62]]
    assert sample_prompts(spec_of(), home, Dataset("validation", []), tokenizer) == []


def test_the_prompt_of_a_chat_ends_before_its_last_answer(tokenizer):
    turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, "abcd", strict=True)]
    made = make_prompts([{"messages": turns}, {"messages": turns[:3]}, {"text": "a b c d"}], tokenizer)
    assert [(prompt.text, prompt.reference) for prompt in made] == [("c", "d"), ("a", "b"), ("a b", "a b c d")]
    assert made[0].ids.tolist() == render_prompt(tokenizer, turns[:3]).tolist()
