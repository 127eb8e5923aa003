"""The teacher of a distillation: where it is found, that a run is told by it, that its tokens are the student's; a wrong base."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from tunix_lab.data.tokenizer import Tokenizer
from tunix_lab.data.tokenizer_training import train_tokenizer
from tunix_lab.distillation import strategies
from tunix_lab.errors import UserError
from tunix_lab.lab.build import _vocab_mapping, build_base, build_strategy, build_teacher
from tunix_lab.lab.origin import teacher_folder, teacher_identity
from tunix_lab.lab.record.manifest import Inputs, _origin_tags
from tunix_lab.lab.versioning import dvc_digest
from tunix_lab.models.catalog import save_model
from tunix_lab.models.decoder import Decoder, init_decoder
from tunix_lab.models.gemma3.config import Gemma3Config
from tunix_lab.models.sharding import make_mesh
from tunix_lab.sft.train_state import flat_params
from tunix_lab.spec import ExperimentSpec
from tunix_lab.spec.algorithm import (
    AttentionProjection,
    AttentionTransfer,
    FeaturePooling,
    FeatureProjection,
    Logits,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def spec_of(teacher: dict[str, str] | None) -> ExperimentSpec:
    algorithm = {"kind": "sft"} if teacher is None else {"kind": "distill", "teacher": teacher}
    return ExperimentSpec.model_validate(
        {
            "name": "student",
            "model": {"family": "gemma3", "size": "pico", "init": {"kind": "random"}},
            "tokenizer": {"path": "data/tokenizer"},
            "algorithm": algorithm,
            "data": {"kind": "chat", "train": "train.jsonl", "validation": "validation.jsonl", "max_length": 64},
            "optimizer": {"learning_rate": 1e-3},
            "training": {"max_steps": 10, "batch_size": 8},
            "tracking": {"experiment": "test"},
        }
    )


@pytest.mark.parametrize(
    ("teacher", "folder"),
    [
        ({"kind": "experiment", "name": "big"}, "outputs/big/final"),
        ({"kind": "path", "path": "models/big"}, "models/big"),
        (None, None),
    ],
)
def test_its_folder(tmp_path, teacher, folder):
    found = teacher_folder(spec_of(teacher), tmp_path)
    assert found == (None if folder is None else tmp_path / folder)


def test_a_run_is_told_by_the_bytes_of_its_teacher(tmp_path):
    """Other weights, another experiment; the digest is among the tags. Runs without a teacher keep the identity they had."""
    spec = spec_of({"kind": "path", "path": "m"})
    folder = teacher_folder(spec, tmp_path)
    folder.mkdir()
    identities = []
    for content in (b"one", b"two"):
        (folder / "model.safetensors").write_bytes(content)
        inputs = Inputs({"train": "x"}, "t", None, teacher_identity(spec, folder))
        assert inputs.teacher == dvc_digest(folder)
        assert _origin_tags(spec, inputs) == {"dvc.tokenizer": "t", "dvc.teacher": dvc_digest(folder)}
        identities.append(inputs.identity(spec))
    assert identities[0] != identities[1]
    plain = spec_of(None)
    assert teacher_identity(plain, None) is None
    # sha256 of {"base": null, "data": …, "spec": …, "tokenizer": …}: no word of a teacher
    assert "teacher" not in str(_origin_tags(plain, Inputs({"train": "x"}, "t", None)))
    assert Inputs({"train": "x"}, "t", None).identity(plain) != Inputs({"train": "x"}, "t", None, "some").identity(plain)


def test_a_teacher_of_the_hub_is_told_by_its_commit():
    spec = spec_of({"kind": "hub", "repo": "org/big", "revision": COMMIT})
    identity = teacher_identity(spec, Path("/nowhere"))
    assert identity == f"hub:org/big@{COMMIT}"
    tags = _origin_tags(spec, Inputs({}, "t", None, identity))
    assert tags == {"dvc.tokenizer": "t", "lab.teacher_repo": "org/big", "lab.teacher_commit": COMMIT}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return train_tokenizer([{"text": "a small text to count letters in"}], 300, tmp_path_factory.mktemp("tokenizer"))


TINY = Gemma3Config.gemma3_pico().replace(
    vocab_size=400,
    num_layers=1,
    embed_dim=8,
    hidden_dim=8,
    num_heads=1,
    num_kv_heads=1,
    head_dim=8,
    attention_pattern=("global",),
)


@pytest.fixture(scope="module")
def teacher(tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    save_model(flat_params(nnx.state(init_decoder(TINY, seed=0))), TINY, folder)
    tokenizer.save(folder)
    return folder


def test_a_teacher_of_another_size_is_loaded(tokenizer, teacher):
    spec = spec_of({"kind": "path", "path": "m"})
    mesh = make_mesh(1, 1)
    loaded = build_teacher(spec, teacher, mesh, tokenizer)
    assert loaded.config.vocab_size == 400 and loaded.config.embed_dim == 8
    assert build_teacher(spec, None, mesh, tokenizer) is None


def test_another_chat_template_is_no_other_tokenizer(tokenizer, teacher, tmp_path):
    shutil.copytree(teacher, tmp_path / "m")
    (tmp_path / "m/chat_template.jinja").write_text("{{ messages[0].content }}<end_of_turn>")
    assert build_teacher(spec_of({"kind": "path", "path": "m"}), tmp_path / "m", make_mesh(1, 1), tokenizer) is not None


def test_a_teacher_of_other_tokens_is_refused(tokenizer, teacher, tmp_path):
    shutil.copytree(teacher, tmp_path / "m")
    train_tokenizer([{"text": "other words give other tokens, and so ids mean other things"}], 300, tmp_path / "other").save(
        tmp_path / "m"
    )
    with pytest.raises(UserError, match="algorithm.teacher: the tokens of .*m are not those of .*tokenizer"):
        build_teacher(spec_of({"kind": "path", "path": "m"}), tmp_path / "m", make_mesh(1, 1), tokenizer)


def test_tables_with_unused_rows_share_the_tokenizers_ids(tokenizer):
    """Of 400 rows of the teacher those of the tokenizer's ids are shared; equal tables need no mapping."""

    def of_size(size):
        return nnx.eval_shape(lambda: Decoder(TINY.replace(vocab_size=size), rngs=nnx.Rngs(0)))

    n = tokenizer.vocab_size
    assert n < 390
    np.testing.assert_array_equal(_vocab_mapping(of_size(390), of_size(400), tokenizer), [*range(n), *[-1] * (400 - n)])
    assert _vocab_mapping(of_size(400), of_size(400), tokenizer) is None


@pytest.mark.parametrize(
    ("section", "strategy"),
    [
        (Logits(direction="jsd", top_k=7), strategies.LogitStrategy(direction="jsd", top_k=7)),
        (AttentionTransfer(distance="mse"), strategies.AttentionTransferStrategy(distance="mse")),
        (AttentionProjection(alpha=0.1), strategies.AttentionProjectionStrategy(alpha=0.1)),
        (FeaturePooling(student_layers=[1]), strategies.FeaturePoolingStrategy(student_layers=[1])),
        (FeatureProjection(teacher_layers=[0]), strategies.FeatureProjectionStrategy(teacher_layers=[0], seed=5)),
    ],
)
def test_strategies_have_the_specs_knobs(section, strategy):
    assert build_strategy(section, 5) == strategy


def test_a_base_that_is_another_model(tmp_path):
    """Says in what it differs from the model that the spec names."""
    shallow = Gemma3Config.gemma3_pico().replace(num_layers=1)
    folder = tmp_path / "final"
    save_model(flat_params(nnx.state(init_decoder(shallow, seed=0))), shallow, folder)
    rows = [{"text": "Mia has 7 pens."}]
    train_tokenizer(rows, 300, tmp_path / "tokenizer")
    with pytest.raises(UserError, match="not a gemma3 pico: its config.json differs in num_layers"):
        build_base(spec_of(None), folder, make_mesh(1, 1), Tokenizer.load(tmp_path / "tokenizer"))
