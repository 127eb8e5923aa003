"""Mistakes of YAML itself: each is one message with its place, and none is a traceback."""

import pytest

from tunix_lab.spec.yaml_source import MAX_DEPTH, MAX_VALUES


def bomb() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    return "\n".join(lines)


def ladder() -> str:
    lines = ["a0: &a0 [x]"] + [f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 500)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nseed: 1\nname: b\n", "spec.yaml:3:1: the key 'name' is already used at line 1"),
        ("model:\n  size: nano\n  size: 1b\n", "spec.yaml:3:3: the key 'size' is already used at line 2"),
        ("model: {size: a, size: b}\n", "spec.yaml:1:18: the key 'size' is already used at line 1"),
        ("name: a\nmodel:\n\tsize: nano\n", "spec.yaml:3:1: a tab; YAML is indented with spaces"),
        ("name: a\n\tseed: 1\n", "spec.yaml:2:1: a tab; YAML is indented with spaces"),
        ("", "spec.yaml: the file is empty; a spec is a mapping of sections"),
        ("# nothing but a comment\n", "spec.yaml: the file is empty; a spec is a mapping of sections"),
        ("- name\n", "spec.yaml:1:1: a spec is a mapping of sections such as 'model:' and 'training:'"),
        ("just text", "spec.yaml:1:1: a spec is a mapping of sections such as 'model:' and 'training:'"),
        (b"name: a\nseed: \xff\n", "spec.yaml:2:7: not UTF-8 (byte 0xff); save the file as UTF-8"),
        ("name: ä".encode("latin-1"), "spec.yaml:1:7: not UTF-8 (byte 0xe4); save the file as UTF-8"),
        ("name: a".encode("utf-16"), "spec.yaml:1:1: not UTF-8 (byte 0xff); save the file as UTF-8"),
        ("name: a\nseed: \x07\n", "spec.yaml:2:7: the character U+0007 is not allowed in YAML"),
        (
            "seed: !!python/object/apply:os.system [ls]\n",
            "spec.yaml:1:7: the tag !!python/object/apply:os.system is not allowed; a spec holds plain values only",
        ),
        (
            "seed: !!python/name:os.system\n",
            "spec.yaml:1:7: the tag !!python/name:os.system is not allowed; a spec holds plain values only",
        ),
        ("seed: !!binary aGk=\n", "spec.yaml:1:7: the tag !!binary is not allowed; a spec holds plain values only"),
        ("model: !mine {a: 1}\n", "spec.yaml:1:8: the tag !mine is not allowed; a spec holds plain values only"),
        ("!!set {a, b}\n", "spec.yaml:1:1: the tag !!set is not allowed; a spec holds plain values only"),
        ("seed: !!int abc\n", "spec.yaml:1:7: 'abc' cannot be read as int"),
        (f"seed: {'9' * 5000}\n", f"spec.yaml:1:7: '{'9' * 40}' cannot be read as int"),
        ('name: "\\ud800"\n', "spec.yaml:1:7: '\\ud800' cannot be read as str"),
        ("3: x\n", "spec.yaml:1:1: a key must be text, got '3'; put it in quotes"),
        ("? [a]\n: x\n", "spec.yaml:1:3: a key must be text, got a mapping or list; put it in quotes"),
        ("name: a\n---\nname: b\n", "spec.yaml:2:1: a second document begins here; a spec is one document"),
        ("name: &a [*a]\n", "spec.yaml:1:7: an alias inside the value that it stands for"),
        ("name: *missing\n", "spec.yaml:1:7: not YAML: found undefined alias 'missing'"),
        ("<<: 3\n", "spec.yaml:1:1: '<<' needs a mapping or a list of mappings"),
        ("%YAML 1.1\n---\nname: a\n", "spec.yaml:1:1: specs are YAML 1.2; delete this line"),
        (f"name: {'[' * 3000}", f"spec.yaml:1:1: nested more than {MAX_DEPTH} deep"),
        (f"name: {'[' * 60}{']' * 60}", f"spec.yaml:1:56: nested more than {MAX_DEPTH} deep"),
    ],
    ids=lambda value: None,
)
def test_message(folder, text, message):
    folder.write("spec.yaml", text)
    assert folder.mistakes() == [message]


@pytest.mark.parametrize(
    "text", ["name: 'open\n", "a: b: c\n", "model: {a: 1\n", "name: @x\n", 'name: "\\UFFFFFFFF"\n', "%TAG x\n"]
)
def test_other_syntax_errors_are_one_located_line(folder, text):
    folder.write("spec.yaml", text)
    (line,) = folder.mistakes()
    assert line.startswith("spec.yaml:") and "not YAML: " in line


def test_alias_bomb_is_stopped_early(folder):
    folder.write("spec.yaml", bomb())
    (line,) = folder.mistakes()
    assert line.endswith(f"expands to more than {MAX_VALUES} values; use fewer aliases")


def test_long_ladder_of_aliases_is_stopped(folder):
    folder.write("spec.yaml", ladder())
    (line,) = folder.mistakes()
    assert line.endswith(f"nested more than {MAX_DEPTH} deep")


def test_several_mistakes_of_one_file_come_together(folder):
    folder.write("spec.yaml", "a: 1\na: 2\nb: !x 1\n3: c\n")
    assert [line.split(": ")[0] for line in folder.mistakes()] == ["spec.yaml:2:1", "spec.yaml:3:4", "spec.yaml:4:1"]


def test_file_that_cannot_be_read(folder):
    folder.write("good2.yaml", "")
    (folder.path / "sub").mkdir()
    assert folder.mistakes(name="god.yaml") == ["god.yaml: no such file (did you mean 'good.yaml'?)"]
    assert folder.mistakes(name="sub") == ["sub: is a folder; name a file"]
    assert folder.mistakes(name="nowhere/spec.yaml") == ["nowhere/spec.yaml: no such file"]


def test_yaml_is_1_2(folder):
    """`1e-3` is a number and `no` is text, as in DVC and unlike in YAML 1.1."""
    folder.write(
        "spec.yaml",
        "extends: good.yaml\ndescription: no\nseed: 012\ntracking: {tags: {day: 2026-01-31, on: off, at: 12:30:45}}\n",
    )
    spec = folder.load().spec
    assert spec.optimizer.learning_rate == 0.001
    assert (spec.description, spec.seed) == ("no", 12)
    assert spec.tracking.tags == {"day": "2026-01-31", "on": "off", "at": "12:30:45"}


def test_byte_order_mark_and_windows_line_ends(folder):
    folder.write("spec.yaml", b"\xef\xbb\xbfextends: good.yaml\r\nseed: 3\r\nnme: x\r\n")
    assert folder.mistakes() == ["spec.yaml:3:1: nme: unknown field (did you mean 'name'?)"]


def test_anchors_aliases_and_merge_keys(folder):
    folder.write(
        "spec.yaml",
        """\
        extends: good.yaml
        training: &steps
          max_steps: 20
          batch_size: 4
        checkpoint: {every: &n 5, keep_last: *n}
        """,
    )
    spec = folder.load().spec
    assert (spec.training.max_steps, spec.checkpoint.every, spec.checkpoint.keep_last) == (20, 5, 5)


def test_merge_key_brings_values_with_their_places(folder):
    folder.write(
        "spec.yaml",
        """\
        extends: good.yaml
        checkpoint: &a {every: 7, keep_last: 0}
        samples:
          <<: [{every: 3}, {every: 4, count: 2}]
          count: 5
        data:
          <<: *a
        """,
    )
    assert folder.mistakes() == [
        "spec.yaml:2:17: data.every: unknown field here (did you mean 'checkpoint.every' or 'samples.every'?)",
        "spec.yaml:2:27: data.keep_last: unknown field here (did you mean 'checkpoint.keep_last'?)",
        "spec.yaml:2:38: checkpoint.keep_last: must be greater than 0, got 0",
    ]
    folder.write("spec.yaml", "extends: good.yaml\nsamples:\n  <<: [{every: 3}, {every: 4, count: 2}]\n  count: 5\n")
    loaded = folder.load()
    assert (loaded.spec.samples.every, loaded.spec.samples.count) == (3, 5)
    assert loaded.origins["samples.every"] == "spec.yaml:3"


def test_anchor_may_be_defined_again(folder):
    folder.write("spec.yaml", "extends: good.yaml\nseed: &x 1\nname: &x other\n")
    assert folder.load().spec.seed == 1
