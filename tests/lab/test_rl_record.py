"""What the record of a run says of reinforcement learning: its critic, its rewards, and how often it samples."""

import hashlib
from pathlib import Path

import pytest

from tunix_lab.data.tokenizer_training import train_tokenizer
from tunix_lab.lab.origin import critic_folder, critic_identity, critic_name
from tunix_lab.lab.record.manifest import Inputs, _origin_tags, digest_inputs, input_files, rollout_cadence
from tunix_lab.lab.versioning import dvc_digest
from tunix_lab.spec import ExperimentSpec, flatten
from tunix_lab.spec.references import locate

REWARD = "tunix_lab.tasks.arithmetic:exact_match"


def spec_of(critic: dict[str, str] | None = None, **rollout: int) -> ExperimentSpec:
    return ExperimentSpec.model_validate(
        {
            "name": "actor",
            "model": {"family": "gemma3", "size": "nano", "init": {"kind": "random"}},
            "tokenizer": {"path": "tokenizer"},
            "algorithm": {
                "kind": "ppo",
                "num_iterations": 2,
                "rollout": {"max_new_tokens": 8, "max_prompt_length": 24, **rollout},
                "rewards": {"functions": [{"function": REWARD}, {"function": "own_rewards:f", "name": "mine"}]},
                "critic": {"init": critic},
            },
            "data": {"kind": "prompts", "train": "a.jsonl", "validation": "a.jsonl"},
            "optimizer": {"learning_rate": 1e-3},
            "training": {"max_steps": 12, "batch_size": 4, "eval_every": 6},
            "checkpoint": {"every": 6},
            "samples": {"every": 6},
            "tracking": {"experiment": "test", "primary_metric": "eval/reward"},
        }
    )


@pytest.fixture
def home(tmp_path) -> Path:
    (tmp_path / "a.jsonl").write_text('{"prompt": "1"}\n')
    (tmp_path / "own_rewards.py").write_text("def f(prompts, completions, **columns): ...\n")
    (tmp_path / "m").mkdir()
    (tmp_path / "m/model.safetensors").write_bytes(b"one")
    return tmp_path


@pytest.fixture
def tokenizer(home):
    return train_tokenizer([{"text": "12"}], 262, home / "tokenizer")


@pytest.mark.parametrize(
    ("critic", "folder"),
    [({"kind": "experiment", "name": "judge"}, "outputs/judge/final"), ({"kind": "path", "path": "m"}, "m"), (None, None)],
)
def test_where_the_critic_starts(home, critic, folder):
    spec = spec_of(critic)
    assert critic_folder(spec, home) == (None if folder is None else home / folder)
    assert critic_name(spec, home) == (folder, None)


def test_a_run_is_told_by_the_bytes_of_its_critic(home, tokenizer):
    spec, identities = spec_of({"kind": "path", "path": "m"}), []
    for content in (b"one", b"two"):
        (home / "m/model.safetensors").write_bytes(content)
        inputs = digest_inputs(spec, home, None, tokenizer)
        assert inputs.critic == critic_identity(spec, home / "m") == dvc_digest(home / "m")
        assert _origin_tags(spec, inputs)["dvc.critic"] == dvc_digest(home / "m")
        assert inputs.described()["critic"] == inputs.critic
        identities.append(inputs.identity(spec))
    assert identities[0] != identities[1]
    without = digest_inputs(spec_of(), home, None, tokenizer)
    assert (
        without.critic is None and "critic" not in without.described() and "critic" not in str(_origin_tags(spec_of(), without))
    )
    assert without.identity(spec) == Inputs(without.data, without.tokenizer, None).identity(spec)


def test_the_files_of_rewards_and_critic_are_among_what_a_run_read(home, tokenizer):
    spec = spec_of({"kind": "path", "path": "m"})
    entries = {entry["role"]: entry for entry in input_files(spec, home, digest_inputs(spec, home, None, tokenizer))}
    for role, reference in (("reward exact_match", REWARD), ("reward mine", "own_rewards:f")):
        digest = hashlib.sha256(locate(reference, home).read_bytes()).hexdigest()
        assert entries[role] == {"role": role, "name": reference, "path": None, "digest": digest}
    assert entries["critic"] == {"role": "critic", "name": "m", "path": "m", "digest": dvc_digest(home / "m")}


def test_how_often_it_samples():
    """4 prompts are one update, made twice; 12 are three."""
    assert rollout_cadence(spec_of()) == {"train": 2, "eval": 6, "last": 12}
    assert rollout_cadence(spec_of(prompts=12)) == {"train": 6, "eval": 6, "last": 12}


def test_every_leaf_of_a_spec_fits_into_one_request_to_mlflow():
    """It takes 100 parameters; what lies beyond would not be searchable."""
    assert len(flatten(spec_of())) <= 100
