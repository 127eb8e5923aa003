"""The sources of data in a spec: every way to write them, and what each mistake is called."""

import pytest

from tunix_lab.spec.data import FileSource, FractionHeldOut, HubSource, RowsHeldOut

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HEAD = "extends: good.yaml\n"
ONE = "must be one of: a path, {path: …} or {kind: hub, repo: …, revision: …, file: …}"


def data_of(folder, *overrides):
    return folder.load(*overrides, name="good.yaml").spec.data


def test_a_plain_path_stays_a_path(folder):
    data = data_of(folder)
    assert (data.train, data.validation, data.columns, data.packing, data.buckets) == (
        "train.jsonl",
        "validation.jsonl",
        {},
        False,
        None,
    )
    assert data.sources("train") == (FileSource(path="train.jsonl", columns={}),)
    assert data.sources("validation") == (FileSource(path="validation.jsonl", columns={}),)
    assert data.held_out() is None


@pytest.mark.parametrize("kind", ["kind: hub, ", ""])
def test_a_file_of_the_hub(folder, kind):
    data = data_of(folder, f"data.train={{{kind}repo: org/name, revision: {COMMIT}, file: a/b.parquet}}")
    assert data.sources("train") == (HubSource(repo="org/name", revision=COMMIT, file="a/b.parquet", columns={}),)


def test_several_sources_and_whose_columns_hold(folder):
    data = data_of(folder, "data.train=[a, {path: b, columns: {completion: c}}]", "data.columns={prompt: q}")
    assert data.sources("train") == (
        FileSource(path="a", columns={"prompt": "q"}),
        FileSource(path="b", columns={"completion": "c"}),
    )


@pytest.mark.parametrize(
    ("written", "held"), [("{fraction: 0.05}", FractionHeldOut(fraction=0.05)), ("{kind: rows, rows: 7}", RowsHeldOut(rows=7))]
)
def test_a_part_held_out_has_the_sources_of_training(folder, written, held):
    data = data_of(folder, "data.train=[a, b]", f"data.validation={written}")
    assert data.held_out() == held and data.sources("validation") == data.sources("train")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("data: {train: 3}", f"2:15: data.train: {ONE}, a list of these"),
        ("data: {train: {kind: hubb}}", f"2:15: data.train: {ONE}, a list of these"),
        ("data: {train: {fraction: 0.1}}", f"2:15: data.train: {ONE}, a list of these"),
        ("data: {validation: {weight: 1}}", f"2:20: data.validation: {ONE}, a list of these, {{fraction: 0.05}}, {{rows: 200}}"),
        ("data: {train: [a, 3]}", f"2:19: data.train.1: {ONE}"),
        ("data: {train: [[a]]}", f"2:16: data.train.0: {ONE}"),
        ("data: {train: []}", "2:15: data.train: must not be empty"),
        ("data: {train: ''}", "2:15: data.train: must not be empty"),
        ("data: {train: [a, {path: b, weigth: 2}]}", "2:29: data.train.1.weigth: unknown field (did you mean 'weight'?)"),
        ("data: {train: [{path: a, weight: 0}]}", "2:34: data.train.0.weight: must be greater than 0, got 0"),
        ("data: {train: {path: a, revision: b}}", "2:25: data.train.revision: unknown field here (did you mean "),
        ("data: {validation: {fraction: 1}}", "2:31: data.validation.fraction: must be less than 1, got 1"),
        ("data: {validation: {rows: 0.5}}", "2:27: data.validation.rows: must be an integer, got 0.5"),
        ("data: {train: {kind: hub, repo: org/name, file: a}}", "2:8: data.train.revision: missing"),
        (
            "data: {train: {repo: org/name, revision: main, file: a}}",
            "2:42: data.train.revision: must be the full hash of a commit (40 digits of 0-9a-f), since branches and tags move "
            "and short hashes become ambiguous; got 'main': `hf datasets info org/name --revision main --expand sha` shows its "
            "hash, and so does https://huggingface.co/datasets/org/name/commits/main",
        ),
        ("data: {columns: {promt: q}}", "2:25: data.columns.promt: chat data has no column 'promt' (did you mean 'prompt'?)"),
        (
            "data: {train: [a, {path: b, columns: {text: q}}]}",
            "2:45: data.train.1.columns.text: chat data has no column 'text'; chat data reads prompt, completion, messages",
        ),
        ("data: {columns: {prompt: 3}}", "2:26: data.columns.prompt: must be text, got 3 (put it in quotes)"),
        ("data: {columns: {prompt: ''}}", "2:26: data.columns.prompt: must not be empty"),
        (
            "data: {train: [a, {path: b, weight: 2}]}",
            "2:15: data.train: give every source a weight, or none: without weights each row comes once an epoch",
        ),
        (
            "data: {validation: [{path: a, weight: 1}]}",
            "2:39: data.validation.0.weight: weights are for the sources of a list under data.train; everywhere else all rows",
        ),
        ("data: {train: {path: a, weight: 2}}", "2:33: data.train.weight: weights are for the sources of a list under"),
        (
            "data: {packing: true, buckets: [32, 64]}",
            "2:32: data.buckets: packed rows are full already: choose data.packing or data.buckets",
        ),
        ("data: {buckets: [32]}", "2:17: data.buckets: must rise and end with data.max_length (64), got [32]"),
        ("data: {buckets: [32, 16, 64]}", "2:17: data.buckets: must rise and end with data.max_length (64), got [32, 16, 64]"),
        ("data: {buckets: [64, 64]}", "2:17: data.buckets: must rise and end with data.max_length (64), got [64, 64]"),
        ("data: {buckets: []}", "2:17: data.buckets: must not be empty"),
        ("data: {buckets: [1, 64]}", "2:18: data.buckets.0: must be at least 2, got 1"),
        (
            "algorithm: {kind: dpo}\ndata: {kind: preference, train: a, validation: b, packing: true}",
            "3:51: data.packing: unknown field",
        ),
    ],
)
def test_mistakes(folder, lines, message):
    folder.write("spec.yaml", HEAD + lines + "\n")
    (line,) = folder.mistakes()
    assert line.startswith(f"spec.yaml:{message}")


def test_an_override_replaces_one_form_by_another(folder):
    folder.write("spec.yaml", HEAD + "data: {train: [{path: a, weight: 1}, {path: b, weight: 2}], validation: {fraction: 0.1}}\n")
    data = folder.load("data.train=c", "data.validation.rows=5").spec.data
    assert data.train == "c" and data.held_out() == RowsHeldOut(rows=5)
    assert folder.load("data.validation.fraction=0.2").spec.data.held_out() == FractionHeldOut(fraction=0.2)
    assert folder.load("data.validation={kind: rows, rows: 5}").spec.data.held_out() == RowsHeldOut(rows=5)


def test_an_override_of_the_same_form_changes_one_field(folder):
    folder.write("spec.yaml", HEAD + "data: {train: {path: a, columns: {prompt: q}}}\n")
    train = folder.load("data.train.path=b", "data.train.columns.completion=c").spec.data.train
    assert train == FileSource(path="b", columns={"prompt": "q", "completion": "c"})


def test_where_the_fields_of_a_source_were_written(folder):
    folder.write("spec.yaml", HEAD + "data:\n  train:\n  - a\n  - path: b\n    columns: {prompt: q}\n")
    origins = folder.load().origins
    assert origins["data.train.0"] == "spec.yaml:4" and origins["data.train.1.path"] == "spec.yaml:5"
    assert origins["data.train.1.columns.prompt"] == "spec.yaml:6" and origins["data.train.1.weight"] == "default"
