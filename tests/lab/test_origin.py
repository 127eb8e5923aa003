"""Where a run starts, and by what it is told from another that starts elsewhere; the hub itself is in tests/stories."""

from pathlib import Path

import pytest

from tunix_lab.lab.origin import base_folder, base_identity, tokenizer_folder
from tunix_lab.lab.versioning import dvc_digest
from tunix_lab.spec import ExperimentSpec

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def spec_of(init: dict[str, str], tokenizer: str | None = None) -> ExperimentSpec:
    return ExperimentSpec.model_validate(
        {
            "name": "start",
            "model": {"family": "gemma3", "size": "nano", "init": init},
            "tokenizer": {"path": tokenizer},
            "algorithm": {"kind": "sft"},
            "data": {"kind": "chat", "train": "train.jsonl", "validation": "validation.jsonl", "max_length": 64},
            "optimizer": {"learning_rate": 1e-3},
            "training": {"max_steps": 10, "batch_size": 8},
            "tracking": {"experiment": "test"},
        }
    )


@pytest.mark.parametrize(
    ("init", "expected"),
    [({"kind": "path", "path": "models/gemma"}, "models/gemma"), ({"kind": "experiment", "name": "sft"}, "outputs/sft/final")],
)
def test_a_folder_brings_its_tokenizer_unless_another_is_named(tmp_path, init, expected):
    assert base_folder(spec_of(init), tmp_path) == tmp_path / expected
    assert tokenizer_folder(spec_of(init), tmp_path) == tmp_path / expected
    assert tokenizer_folder(spec_of(init, "data/tokenizer"), tmp_path) == tmp_path / "data/tokenizer"


def test_random_weights_come_from_nowhere(tmp_path):
    spec = spec_of({"kind": "random"}, "data/tokenizer")
    assert base_folder(spec, tmp_path) is None and base_identity(spec, None) is None
    assert tokenizer_folder(spec, tmp_path) == tmp_path / "data/tokenizer"


def test_a_folder_is_told_by_its_bytes(tmp_path):
    spec = spec_of({"kind": "path", "path": "m"})
    weights = tmp_path / "m/model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"one")
    first = base_identity(spec, weights.parent)
    assert first == dvc_digest(weights.parent) and first.endswith(".dir")
    weights.write_bytes(b"two")
    assert base_identity(spec, weights.parent) != first


def test_a_commit_of_the_hub_is_told_by_its_name_without_reading_the_weights():
    spec = spec_of({"kind": "hub", "repo": "org/name", "revision": COMMIT})
    assert base_identity(spec, Path("/nowhere")) == f"hub:org/name@{COMMIT}"
