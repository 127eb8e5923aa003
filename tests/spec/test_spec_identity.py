"""Resolved YAML, dotted leaves and hashes of a spec."""

import pytest
from pydantic import ValidationError

from tunix_lab.sft.config import DpoKnobs, OrpoKnobs
from tunix_lab.spec import ExperimentSpec, flatten, group_hash, resolved_yaml, resume_hash, spec_hash, upstream
from tunix_lab.spec.algorithm import Dpo

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HASHES = {"spec": spec_hash, "group": group_hash, "resume": resume_hash}
PREFERENCE = ("algorithm.kind=dpo", "data={kind: preference, train: a, validation: b}")


def changed(folder, *overrides, base=()):
    """Names of the hashes that `overrides` change."""
    before, after = folder.load(*base, name="good.yaml").spec, folder.load(*base, *overrides, name="good.yaml").spec
    return {name for name, digest in HASHES.items() if digest(before) != digest(after)}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("name=other", {"spec"}),
        ("description=why", {"spec"}),
        ("tracking.tags.who=me", {"spec"}),
        ("tracking.experiment=other", {"spec"}),
        ("seed=1", {"spec", "resume"}),
        ("samples={every: 3}", {"spec", "group"}),
        ("checkpoint.every=3", {"spec", "group"}),
        ("training.eval_every=3", {"spec", "group"}),
        ("training.eval_batch_size=4", {"spec", "group"}),
        ("training.log_every=3", {"spec", "group"}),
        ("mesh.tp=2", {"spec", "group"}),
        ("model.init={kind: experiment, name: x}", {"spec", "group", "resume"}),
        (f"model.init={{kind: hub, repo: org/name, revision: {COMMIT}}}", {"spec", "group", "resume"}),
        ("model.dtype=bfloat16", {"spec", "group", "resume"}),
        ("tokenizer.path=other", {"spec", "group", "resume"}),
        ("adapter={kind: lora}", {"spec", "group", "resume"}),
        ("data.train=other", {"spec", "group", "resume"}),
        ("data.train=[train.jsonl, {path: more.jsonl}]", {"spec", "group", "resume"}),
        ("data.validation={fraction: 0.1}", {"spec", "group", "resume"}),
        ("data.columns={prompt: question}", {"spec", "group", "resume"}),
        ("data.packing=true", {"spec", "group", "resume"}),
        ("data.buckets=[32, 64]", {"spec", "group", "resume"}),
        ("data.max_length=65", {"spec", "group", "resume"}),
        ("optimizer.learning_rate=2e-3", {"spec", "group", "resume"}),
        ("optimizer.schedule.end_factor=0.5", {"spec", "group", "resume"}),
        ("training.max_steps=11", {"spec", "group", "resume"}),
        ("training.batch_size=16", {"spec", "group", "resume"}),
        ("training.micro_batch_size=4", {"spec", "group", "resume"}),
        # another way to write the same mathematics
        ("training.micro_batch_size=8", {"spec", "group"}),
        ("optimizer.learning_rate=0.001", set()),
        ("optimizer.clip_norm=1", set()),
        ("optimizer.b1=0.9", set()),
    ],
)
def test_what_changes_which_hash(folder, override, expected):
    assert changed(folder, override) == expected


def test_knobs_of_the_algorithm_change_all_hashes(folder):
    assert changed(folder, "algorithm.beta=0.2", base=PREFERENCE) == set(HASHES)


@pytest.mark.parametrize("override", [f"model.init.revision={COMMIT[::-1]}", "model.init.repo=org/other", "tokenizer.path=null"])
def test_other_weights_or_another_tokenizer_change_all_hashes(folder, override):
    assert changed(folder, override, base=(f"model.init={{kind: hub, repo: org/name, revision: {COMMIT}}}",)) == set(HASHES)


def test_hashes_are_sha256_and_do_not_depend_on_how_the_spec_was_written(folder):
    spec = folder.load(name="good.yaml").spec
    assert all(len(digest(spec)) == 64 for digest in HASHES.values())
    folder.write("a.yaml", "tracking: {experiment: test}\nseed: 0\n")
    folder.write("spec.yaml", "extends: [good.yaml, a.yaml]\n")
    assert spec_hash(folder.load().spec) == spec_hash(spec)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        PREFERENCE,
        ("algorithm.kind=orpo", PREFERENCE[1]),
        ("adapter.kind=qlora", "samples={every: 2}", "optimizer.learning_rate=1.5e-7", "optimizer.clip_norm=null"),
        ("description='no'", "tracking.tags={a: 'null', b: '1e3', c: 'x: y # z', d: ' '}"),
        ('description="Zeile 1 ü\\nline 2: x\\n\\n  indented\\n"',),
        ('description="\\tx  \\n y"',),
        (f"model.init={{kind: hub, repo: org/name, revision: {COMMIT}}}", "tokenizer.path=null"),
        ("data.train=[{path: a, weight: 2}, {path: b, weight: 1, columns: {prompt: q}}]", "data.validation={rows: 9}"),
        (f"data.train={{repo: org/name, revision: {COMMIT}, file: a.parquet}}", "data.validation=[a, b]", "data.buckets=[9, 64]"),
    ],
)
def test_resolved_yaml_loads_to_the_same_spec(folder, overrides):
    spec = folder.load(*overrides, name="good.yaml").spec
    folder.write("resolved.yaml", resolved_yaml(spec).encode())
    again = folder.load(name="resolved.yaml")
    assert again.spec == spec and spec_hash(again.spec) == spec_hash(spec)
    assert "default" not in {origin for name, origin in again.origins.items()}


def test_flatten(folder):
    leaves = flatten(folder.load("tracking.tags.who=me", name="good.yaml").spec)
    assert leaves["training.max_steps"] == 10
    assert leaves["optimizer.schedule.kind"] == "cosine"
    assert leaves["tracking.tags.who"] == "me"
    several = flatten(folder.load("data.train=[a, {path: b, columns: {prompt: q}}]", name="good.yaml").spec)
    assert several["data.train.0"] == "a" and several["data.train.1.columns.prompt"] == "q" and "data.train" not in several
    assert [name for name in several if name.startswith("data.train.1.")][0] == "data.train.1.kind"  # also in lists
    assert leaves["samples"] is None and leaves["training.micro_batch_size"] is None
    assert all(isinstance(value, str | int | float | bool | None) for value in leaves.values())
    assert folder.load(name="good.yaml").origins.keys() == flatten(folder.load(name="good.yaml").spec).keys()


def test_upstream(folder):
    assert upstream(folder.load(name="good.yaml").spec) is None
    assert upstream(folder.load("model.init={kind: experiment, name: base}", name="good.yaml").spec) == "base"


def test_the_algorithm_is_the_trainers_own_knobs(folder):
    dpo = folder.load(*PREFERENCE, "algorithm.beta=0.2", name="good.yaml").spec.algorithm
    assert isinstance(dpo, DpoKnobs) and (dpo.kind, dpo.beta, dpo.label_smoothing) == ("dpo", 0.2, 0.0)
    orpo = folder.load("algorithm.kind=orpo", PREFERENCE[1], name="good.yaml").spec.algorithm
    assert isinstance(orpo, OrpoKnobs) and orpo.kind == "orpo"


def test_a_spec_made_in_python_is_checked_too(folder):
    data = folder.load(*PREFERENCE, name="good.yaml").spec.model_dump()
    assert ExperimentSpec.model_validate(data | {"algorithm": Dpo(beta=0.3)}).algorithm.beta == 0.3
    with pytest.raises(ValidationError, match="needs data of kind 'text' or 'chat'"):
        ExperimentSpec.model_validate(data | {"algorithm": {"kind": "sft"}})


def test_a_spec_is_frozen(folder):
    spec = folder.load(name="good.yaml").spec
    with pytest.raises(ValidationError, match="frozen"):
        spec.seed = 3
    with pytest.raises(ValidationError, match="frozen"):
        spec.training.max_steps = 3


def test_decoder_config_has_the_dtypes_of_the_spec(folder):
    config = folder.load("model.size=1b", "model.param_dtype=bfloat16", name="good.yaml").spec.model.decoder_config()
    assert (config.num_layers, config.dtype, config.param_dtype) == (26, "float32", "bfloat16")
