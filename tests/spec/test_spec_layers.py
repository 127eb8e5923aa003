"""`extends` and `--set`: what wins, where a value came from, and mistakes through them."""

import pytest


def test_parents_lie_left_to_right_below_the_file(folder):
    folder.write("base/a.yaml", "extends: ../good.yaml\nseed: 1\nmesh: {fsdp: 1}\ncheckpoint: {every: 1}\n")
    folder.write("base/b.yaml", "seed: 2\nmesh: {tp: 2}\ncheckpoint: {every: 2}\n")
    folder.write("spec.yaml", "extends: [base/a.yaml, base/b.yaml]\nname: child\ncheckpoint: {keep_last: 9}\n")
    loaded = folder.load()
    spec = loaded.spec
    assert (spec.name, spec.seed, spec.mesh.fsdp, spec.mesh.tp) == ("child", 2, 1, 2)
    assert (spec.checkpoint.every, spec.checkpoint.keep_last) == (2, 9)
    assert loaded.origins["name"] == "spec.yaml:2"
    assert loaded.origins["seed"] == "base/b.yaml:1"
    assert loaded.origins["mesh.fsdp"] == "base/a.yaml:3"
    assert loaded.origins["model.size"] == "base/../good.yaml:4"
    assert loaded.origins["training.log_every"] == "default"
    assert loaded.source_text.startswith("extends: [base/a.yaml")


def test_one_parent_may_be_reached_twice(folder):
    folder.write("a.yaml", "extends: good.yaml\n")
    folder.write("b.yaml", "extends: good.yaml\n")
    folder.write("spec.yaml", "extends: [a.yaml, b.yaml]\n")
    assert folder.load().spec.name == "good"


def test_null_sets_none(folder):
    folder.write("a.yaml", "extends: good.yaml\nsamples: {every: 3}\noptimizer: {clip_norm: 2.0}\n")
    folder.write("spec.yaml", "extends: a.yaml\nsamples: null\noptimizer: {clip_norm: null}\n")
    loaded = folder.load()
    assert loaded.spec.samples is None and loaded.spec.optimizer.clip_norm is None
    assert loaded.origins["samples"] == "spec.yaml:2"


def test_a_new_kind_starts_its_section_afresh(folder):
    """The learning-rate schedule of the parent has an end_factor, which a constant one does not know."""
    folder.write("a.yaml", "extends: good.yaml\noptimizer: {schedule: {kind: linear, end_factor: 0.5, warmup_steps: 3}}\n")
    folder.write("spec.yaml", "extends: a.yaml\noptimizer: {schedule: {kind: constant}}\n")
    assert folder.load().spec.optimizer.schedule.warmup_steps == 0
    folder.write("spec.yaml", "extends: a.yaml\noptimizer: {schedule: {kind: linear, end_factor: 0.1}}\n")
    assert folder.load().spec.optimizer.schedule.warmup_steps == 3


def test_mistake_in_a_parent_is_said_there(folder):
    folder.write("base/a.yaml", "extends: ../good.yaml\n\ntraining:\n  batch_size: 0\n")
    folder.write("spec.yaml", "extends: base/a.yaml\nname: child\n")
    assert folder.mistakes() == ["base/a.yaml:4:15: training.batch_size: must be greater than 0, got 0"]


def test_mistakes_of_syntax_in_all_parents_come_together(folder):
    folder.write("a.yaml", "x: 1\nx: 2\n")
    folder.write("b.yaml", "y: !z 1\n")
    folder.write("spec.yaml", "extends:\n  - a.yaml\n  - b.yaml\n  - c.yaml\n  - 3\nname: child\n")
    assert folder.mistakes() == [
        "spec.yaml:5:5: extends: must be a file name or a list of file names",
        "a.yaml:2:1: the key 'x' is already used at line 1",
        "b.yaml:1:4: the tag !z is not allowed; a spec holds plain values only",
        "spec.yaml:4:5: extends: c.yaml: no such file (did you mean 'b.yaml'?)",
    ]


@pytest.mark.parametrize("value", ["3", "{a: b}", "[[good.yaml]]", "''"])
def test_extends_must_name_files(folder, value):
    folder.write("spec.yaml", f"extends: {value}\n")
    assert "extends: must be a file name or a list of file names" in folder.mistakes()[0]


def test_circle(folder):
    folder.write("spec.yaml", "extends: base/a.yaml\n")
    folder.write("base/a.yaml", "extends: [b.yaml]\n")
    folder.write("base/b.yaml", "seed: 1\nextends: ../spec.yaml\n")
    assert folder.mistakes() == [
        "base/b.yaml:2:10: extends: files extend each other in a circle: spec.yaml -> base/a.yaml -> base/b.yaml -> "
        + "base/../spec.yaml"
    ]


def test_a_file_that_extends_itself(folder):
    folder.write("spec.yaml", "extends: spec.yaml\n")
    assert folder.mistakes() == ["spec.yaml:1:10: extends: files extend each other in a circle: spec.yaml -> spec.yaml"]


def test_overrides_win_in_their_order(folder):
    loaded = folder.load("seed=1", "seed=2", "training.max_steps=7", name="good.yaml")
    assert (loaded.spec.seed, loaded.spec.training.max_steps) == (2, 7)
    assert loaded.origins["seed"] == "--set #2" and loaded.origins["training.max_steps"] == "--set #3"
    assert loaded.origins["training.batch_size"] == "good.yaml:21"


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ("optimizer.learning_rate=1e-5", "optimizer.learning_rate", 1e-5),
        ("optimizer.clip_norm=null", "optimizer.clip_norm", None),
        ("tracking.higher_is_better=true", "tracking.higher_is_better", True),
        # fields that are text take what was typed
        ("description=12", "description", "12"),
        ("description=1e3", "description", "1e3"),
        ("description=no, really", "description", "no, really"),
        ("description=a=b", "description", "a=b"),
        ("description=''", "description", ""),
        ("tracking.tags.year=2026", "tracking.tags.year", "2026"),
        ("tracking.tags.ok=true", "tracking.tags.ok", "true"),
    ],
)
def test_an_override_has_the_type_of_its_field(folder, override, field, value):
    value_found = folder.load(override, name="good.yaml").spec
    for part in field.split("."):
        value_found = value_found[part] if isinstance(value_found, dict) else vars(value_found)[part]
    assert value_found == value and type(value_found) is type(value)


def test_overrides_merge_mappings(folder):
    spec = folder.load("adapter={kind: lora, rank: 4}", "adapter.alpha=2", "samples={count: 3}", name="good.yaml").spec
    assert (spec.adapter.kind, spec.adapter.rank, spec.adapter.alpha, spec.samples.count) == ("lora", 4, 2.0, 3)
    assert type(spec.adapter.alpha) is float


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.max_steps", "--set #1: must look like section.field=value, got 'training.max_steps'"),
        ("=3", "--set #1: must look like section.field=value, got '=3'"),
        ("a..b=3", "--set #1: must look like section.field=value, got 'a..b=3'"),
        ("seed=", "--set #1: seed: no value after '='; write null for none, '' for empty text"),
        ("seed=ten", "--set #1: seed: must be an integer, got 'ten'"),
        ("seed='1'", "--set #1: seed: must be an integer, got '1' (without quotes)"),
        (
            "seed=!!python/name:os.system",
            "--set #1: seed: the tag !!python/name:os.system is not allowed; a spec holds plain values only",
        ),
        ("model={size: a, size: b}", "--set #1: model: the key 'size' is already used"),
        ("extends=other.yaml", "--set #1: extends: is part of the file and cannot be overridden"),
        ("trainning.max_steps=3", "--set #1: trainning: unknown field (did you mean 'training'?)"),
        ("training.max_stepz=3", "--set #1: training.max_stepz: unknown field (did you mean 'max_steps'?)"),
        ("training.max_steps.x=3", "--set #1: training.max_steps: must be an integer, got a mapping"),
        (
            "algorithm.kind=kto",
            "--set #1: algorithm.kind: must be one of 'sft', 'dpo', 'ipo', 'orpo', "
            "'distill', 'grpo', 'gspo', 'dapo', 'drgrpo', 'rloo', 'ppo', "
            "got 'kto'",
        ),
        ("description=[1]", "--set #1: description: must be text, got a list"),
        ("name=null", "--set #1: name: must be text, got null"),
    ],
)
def test_mistake_in_an_override(folder, override, message):
    assert message in folder.mistakes(override, name="good.yaml")


def test_syntax_error_in_an_override(folder):
    (line,) = folder.mistakes("seed=[", name="good.yaml")
    assert line.startswith("--set #1: seed: not YAML: ")


def test_mistakes_of_file_and_overrides_come_together(folder):
    folder.write("spec.yaml", "extends: nowhere.yaml\n")
    assert len(folder.mistakes("seed", "extends=1")) == 3
