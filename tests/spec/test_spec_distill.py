"""Distillation in a spec: a teacher, a strategy with its own knobs, what it needs first, and mistakes in any of them."""

import dataclasses

import pytest

from tunix_lab.distillation.config import LogitKnobs
from tunix_lab.spec import flatten, resolved_yaml, resume_hash, upstream, upstreams
from tunix_lab.spec.algorithm import metric_names

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DISTILL = "algorithm={kind: distill, teacher: {kind: experiment, name: big}}"
HEAD = "extends: good.yaml\n"


def loaded(folder, *overrides):
    return folder.load(DISTILL, *overrides, name="good.yaml").spec


def test_the_strategy_has_the_librarys_own_knobs(folder):
    plain = loaded(folder).algorithm.strategy
    assert isinstance(plain, LogitKnobs) and plain.kind == "logits"
    for field in dataclasses.fields(LogitKnobs):
        assert vars(plain)[field.name] == field.default
    chosen = loaded(folder, "algorithm.strategy={kind: attention_transfer, student_layers: [0, 2], teacher_layers: [1, 5]}")
    strategy = chosen.algorithm.strategy
    assert (strategy.student_layers, strategy.teacher_layers, strategy.alpha, strategy.distance) == ([0, 2], [1, 5], 0.75, "kl")
    folder.write("resolved.yaml", resolved_yaml(chosen).encode())
    assert folder.load(name="resolved.yaml").spec == chosen
    assert flatten(chosen)["algorithm.teacher.name"] == "big"


@pytest.mark.parametrize(
    "kind", ["attention_transfer", "attention_projection", "feature_pooling", "feature_projection", "logits"]
)
def test_metrics_of_each_strategy(folder, kind):
    names = metric_names(loaded(folder, f"algorithm.strategy={{kind: {kind}}}").algorithm)
    assert {"train/soft_loss", "eval/hard_loss", "eval/loss"} <= names
    assert ({"train/kl", "eval/kl"} <= names) is (kind == "logits")


@pytest.mark.parametrize(
    ("init", "teacher", "expected"),
    [
        ("{kind: random}", "{kind: experiment, name: big}", (None, ["big"])),
        ("{kind: experiment, name: small}", "{kind: experiment, name: big}", ("small", ["small", "big"])),
        ("{kind: experiment, name: big}", "{kind: experiment, name: big}", ("big", ["big"])),
        ("{kind: experiment, name: small}", "{kind: path, path: models/big}", ("small", ["small"])),
        ("{kind: random}", f"{{kind: hub, repo: org/big, revision: {COMMIT}}}", (None, [])),
    ],
)
def test_what_has_to_be_there_first(folder, init, teacher, expected):
    spec = loaded(folder, f"model.init={init}", f"algorithm.teacher={teacher}")
    assert (upstream(spec), upstreams(spec)) == expected


@pytest.mark.parametrize(
    "override",
    [
        "algorithm.teacher.name=other",
        "algorithm.strategy={kind: logits, temperature: 3.0}",
        "algorithm.strategy={kind: feature_pooling}",
    ],
)
def test_teacher_and_strategy_are_part_of_what_must_match_to_continue(folder, override):
    assert resume_hash(loaded(folder)) != resume_hash(loaded(folder, override))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("algorithm: {kind: distill}", "2:1: algorithm.teacher: missing"),
        (
            "algorithm: {kind: distill, teacher: {kind: random}}",
            "2:44: algorithm.teacher.kind: must be one of 'experiment', 'path', 'hub', got 'random'",
        ),
        ("algorithm: {kind: distill, teacher: {kind: path}}", "2:28: algorithm.teacher.path: missing"),
        (
            "algorithm: {kind: distill, teacher: {kind: path, path: x}, strategy: {kind: logit}}",
            "2:77: algorithm.strategy.kind: must be one of 'logits', 'attention_transfer', 'attention_projection', "
            "'feature_pooling', 'feature_projection', got 'logit' (did you mean 'logits'?)",
        ),
        (
            "algorithm: {kind: distill, teacher: {kind: path, path: x}, strategy: {kind: logits, direction: forward}}",
            "2:96: algorithm.strategy.direction: must be one of 'forward_kl', 'reverse_kl', 'jsd', got 'forward'",
        ),
        (
            "algorithm: {kind: distill, teacher: {kind: path, path: x}, strategy: {kind: logits, temperature: 0}}",
            "2:98: algorithm.strategy.temperature: must be greater than 0, got 0",
        ),
        (
            "algorithm: {kind: distill, teacher: {kind: path, path: x}, strategy: {kind: feature_pooling, temperature: 1}}",
            "2:94: algorithm.strategy.temperature: unknown field",
        ),
        (
            "algorithm: {kind: distill, teacher: {kind: path, path: x}, temperature: 1}",
            "2:60: algorithm.temperature: unknown field here (did you mean 'algorithm.strategy.temperature'",
        ),
        (
            "algorithm: {kind: distill, teacher: {kind: experiment, name: good}}",
            "2:62: algorithm.teacher.name: experiment 'good' cannot be its own teacher",
        ),
        (
            "algorithm: {kind: distill, teacher: {kind: path, path: x}}\n"
            "data: {kind: preference, train: a, validation: b, max_length: null}",
            "3:51: data.max_length: unknown field",
        ),
        (
            "algorithm: {kind: distill, teacher: {kind: path, path: x}, strategy: {kind: feature_pooling}}\n"
            "training: {scan_layers: true}",
            "3:25: training.scan_layers: strategy 'feature_pooling' compares what the layers compute; only 'logits' can do ",
        ),
        (
            "algorithm: {kind: distill, teacher: {kind: path, path: x}, strategy: {kind: attention_transfer}}\n"
            "training: {remat: block}",
            "3:19: training.remat: strategy 'attention_transfer' compares what the layers compute",
        ),
    ],
)
def test_mistakes(folder, lines, message):
    folder.write("spec.yaml", HEAD + lines + "\n")
    (line,) = folder.mistakes()
    assert line.startswith(f"spec.yaml:{message}")


def test_pairs_are_no_data_for_distillation(folder):
    folder.write(
        "good.yaml",
        (folder.path / "good.yaml").read_text().replace("  max_length: 64\n", "").replace("kind: chat", "kind: preference"),
    )
    folder.write("spec.yaml", HEAD + "algorithm: {kind: distill, teacher: {kind: path, path: x}}\n")
    (line,) = folder.mistakes()
    assert "data.kind: algorithm 'distill' needs data of kind 'text' or 'chat', got 'preference'" in line


def test_logits_go_with_scanned_layers(folder):
    assert loaded(folder, "training={scan_layers: true, remat: block, max_steps: 3, batch_size: 2}").training.scan_layers
