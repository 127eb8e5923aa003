"""Reinforcement learning in a spec: the library's own knobs, rollouts and rewards, and mistakes in any of them."""

import dataclasses

import pytest

from tunix_lab.rl import config
from tunix_lab.spec import flatten, resolved_yaml, resume_hash, upstreams
from tunix_lab.spec.algorithm import metric_names, reward_metric
from tunix_lab.spec.json_schema import json_schema
from tunix_lab.spec.rl_checks import rollout_prompts, updates_per_rollout

KNOBS = {
    "grpo": config.GrpoKnobs,
    "gspo": config.GspoKnobs,
    "dapo": config.DapoKnobs,
    "drgrpo": config.DrGrpoKnobs,
    "rloo": config.RlooKnobs,
    "ppo": config.PpoKnobs,
}
EXACT = "tunix_lab.tasks.arithmetic:exact_match"
SECTIONS = (
    "algorithm.rollout={max_new_tokens: 16, max_prompt_length: 32}",
    f"algorithm.rewards={{functions: [{{function: {EXACT}}}]}}",
)
RL = """\
extends: good.yaml
algorithm:
  kind: grpo
  rollout: {max_new_tokens: 16, max_prompt_length: 32}
  rewards: {functions: [{function: tunix_lab.tasks.arithmetic:exact_match}]}
data: {kind: prompts, train: train.jsonl, validation: validation.jsonl}
checkpoint: {every: 10}
tracking: {primary_metric: eval/reward, higher_is_better: true}
"""


@pytest.fixture
def rl(folder):
    folder.write("good.yaml", (folder.path / "good.yaml").read_text().replace("  max_length: 64\n", ""))
    folder.write("rl.yaml", RL)

    def load(*overrides, **options):
        return folder.load(*overrides, name="rl.yaml", **options).spec

    return load


@pytest.mark.parametrize("kind", KNOBS)
def test_the_algorithm_has_the_librarys_own_knobs(rl, folder, kind):
    spec = rl(f"algorithm.kind={kind}", *SECTIONS)
    assert isinstance(spec.algorithm, KNOBS[kind]) and spec.algorithm.kind == kind
    for field in dataclasses.fields(KNOBS[kind]):
        assert vars(spec.algorithm)[field.name] == field.default, field.name
    folder.write("resolved.yaml", resolved_yaml(spec).encode())
    assert folder.load(name="resolved.yaml").spec == spec
    assert flatten(spec)["algorithm.rewards.functions.0.function"] == EXACT
    assert f"{KNOBS[kind].__name__.removesuffix('Knobs')}" in json_schema()["$defs"]


def test_the_defaults_of_the_sections(rl):
    rollout, rewards = rl().algorithm.rollout, rl().algorithm.rewards
    assert (rollout.temperature, rollout.top_k, rollout.top_p, rollout.prompts, rollout.max_rows) == (1.0, None, None, None, None)
    assert rollout.eval_temperature == 0.0
    assert (rewards.timeout_s, rewards.workers, rewards.on_error, rewards.memory_mb) == (10.0, 1, "stop", None)
    assert [(f.label, f.weight) for f in rewards.functions] == [("exact_match", 1.0)]


def test_updates_of_a_rollout(rl):
    assert (rollout_prompts(rl()), updates_per_rollout(rl())) == (8, 1)
    wide = rl("algorithm.rollout.prompts=40", "algorithm.num_iterations=2", "training.eval_every=20", "training.max_steps=20",
              "checkpoint.every=10")  # fmt: skip
    assert (rollout_prompts(wide), updates_per_rollout(wide)) == (40, 10)  # 2 passes over 40 / 8 batches


def test_metrics(rl):
    spec = rl(f"algorithm.rewards.functions=[{{function: {EXACT}, name: right}}, {{function: {EXACT}}}]")
    names = metric_names(spec.algorithm)
    assert {"train/reward_right", "eval/reward_right", "train/reward_exact_match", "eval/reward", "train/kl"} <= names
    assert "perf/rollout_s" in names and "train/value_loss" not in names and "eval/loss" in names
    assert [reward_metric(f) for f in spec.algorithm.rewards.functions] == ["reward_right", "reward_exact_match"]
    assert all(name.count("/") == 1 for name in names)
    assert {"train/value_loss", "train/critic_grad_norm"} <= metric_names(rl("algorithm.kind=ppo", *SECTIONS).algorithm)
    assert "train/kl" not in metric_names(rl("algorithm.beta=0.0").algorithm)  # nothing to diverge from
    one_each = rl("algorithm.kind=ppo", "algorithm.num_generations=1", *SECTIONS).algorithm
    assert "train/frac_zero_std_groups" not in metric_names(one_each)  # there are no groups
    dapo = metric_names(rl("algorithm.kind=dapo", *SECTIONS, "algorithm.overlong_buffer_length=4").algorithm)
    assert {"train/sampling_rounds", "eval/reward_overlong"} <= dapo
    plain = metric_names(rl("algorithm.kind=dapo", *SECTIONS, "algorithm.dynamic_sampling=false").algorithm)
    assert not {"train/sampling_rounds", "eval/reward_overlong"} & plain


def test_the_best_checkpoint_may_be_that_of_a_reward(rl):
    best = "checkpoint.keep_best={metric: eval/reward_exact_match, higher_is_better: true}"
    assert rl(best, "training.eval_every=10").checkpoint.keep_best.metric == "eval/reward_exact_match"


def test_what_a_critic_starts_from(rl):
    plain = rl("algorithm.kind=ppo", *SECTIONS)
    assert plain.algorithm.critic.init is None and plain.algorithm.critic.learning_rate is None and upstreams(plain) == []
    own = rl("algorithm.kind=ppo", *SECTIONS, "algorithm.critic={init: {kind: experiment, name: judge}, learning_rate: 1e-4}")
    assert upstreams(own) == ["judge"] and resume_hash(own) != resume_hash(plain)


@pytest.mark.parametrize(
    ("override", "continues"),
    [
        ("algorithm.rewards.timeout_s=99", True),
        ("algorithm.rewards.workers=4", True),
        ("algorithm.rewards.memory_mb=500", True),
        ("algorithm.rewards.on_error=mask", False),
        ("algorithm.rollout.temperature=0.9", False),
        ("algorithm.rollout.prompts=16", False),
        (f"algorithm.rewards.functions=[{{function: {EXACT}, weight: 2}}]", False),
        ("algorithm.beta=0.0", False),
        ("data.overlong=drop", False),
    ],
)
def test_what_may_change_between_attempts(rl, override, continues):
    steps = ("training.eval_every=10",)
    assert (resume_hash(rl(*steps)) == resume_hash(rl(*steps, override))) is continues


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["algorithm.rollout.temperature=0"], "algorithm.rollout.temperature: must be greater than 0, got 0"),
        (["algorithm.rollout.temprature=1"], "algorithm.rollout.temprature: unknown field (did you mean 'temperature'?)"),
        (["algorithm.rollout.top_p=1.5"], "algorithm.rollout.top_p: must be at most 1, got 1.5"),
        (["algorithm.rollout=null"], "algorithm.rollout: must be a mapping, got null"),
        (["algorithm.rewards.functions=[]"], "algorithm.rewards.functions: must not be empty"),
        (["algorithm.rewards.functions=[{function: nowhere}]"],
         "algorithm.rewards.functions.0.function: must look like package.module:function; got 'nowhere'"),
        (["algorithm.rewards.functions=[{function: 'tunix_lab.tasks.arithmetic:exact_mach'}]"],
         "algorithm.rewards.functions.0.function: tunix_lab.tasks.arithmetic has no function 'exact_mach' "
         "(did you mean 'exact_match'?)"),
        (["algorithm.rewards.functions=[{function: 'no_such_module:f'}]"],
         "algorithm.rewards.functions.0.function: no module 'no_such_module', neither installed nor in the project folder"),
        ([f"algorithm.rewards.functions=[{{function: {EXACT}, name: a/b}}]"],
         "algorithm.rewards.functions.0.name: may hold letters, digits, '_' and '-' only; got 'a/b'"),
        ([f"algorithm.rewards.functions=[{{function: {EXACT}}}, {{function: {EXACT}}}]"],
         "algorithm.rewards.functions.1.function: another function is called 'exact_match', too; give each a name of its own"),
        ([f"algorithm.rewards.functions=[{{function: {EXACT}, name: std}}]"],
         "algorithm.rewards.functions.0.name: reward_std is already the name of another metric; give the function another name"),
        (["algorithm.rewards.on_error=skip"], "algorithm.rewards.on_error: must be one of 'stop', 'mask', got 'skip'"),
        (["algorithm.rollout.prompts=12"],
         "algorithm.rollout.prompts: must be a multiple of training.batch_size (8), so that every update is of whole batches"),
        (["algorithm.rollout.prompts=32", "training.max_steps=12", "training.eval_every=8", "checkpoint.every=6"],
         "checkpoint.every: must be a multiple of 4, the updates made from one rollout (algorithm.num_iterations x "
         "algorithm.rollout.prompts / training.batch_size): weights are saved and judged between rollouts only, so that a "
         "resumed run samples the same answers; got 6, take 4 or 8"),
        (["algorithm.num_iterations=2", "training.eval_every=1"],
         "training.eval_every: must be a multiple of 2, the updates made from one rollout"),
        (["algorithm.num_iterations=2", "training.max_steps=11"], "training.max_steps: must be a multiple of 2, the updates"),
        (["algorithm.num_iterations=2", "samples={every: 5}"], "samples.every: must be a multiple of 2, the updates made"),
        (["algorithm.num_generations=1"], "algorithm.num_generations: must be greater than 1, got 1"),
        (["algorithm.beta=-1"], "algorithm.beta: must be at least 0, got -1"),
        (["algorithm.gamma=1.0"], "algorithm.gamma: unknown field"),
        (["algorithm.critc={}"], "algorithm.critc: unknown field"),
        (["data.overlong=truncate"], "data.overlong: must be one of 'error', 'drop', got 'truncate'"),
        (["data.max_length=3"], "data.max_length: unknown field"),
        (["data={kind: chat, max_length: 9, train: a, validation: b}"],
         "data.kind: algorithm 'grpo' needs data of kind 'prompts', got 'chat'"),
        (["algorithm={kind: sft}", "tracking.primary_metric=eval/loss"],
         "data.kind: algorithm 'sft' needs data of kind 'text' or 'chat', got 'prompts'"),
        (["tracking.primary_metric=eval/kl"], "tracking.primary_metric: this experiment does not produce 'eval/kl'"),
        (["algorithm.kind=dapo", "algorithm.rollout={max_new_tokens: 16, max_prompt_length: 32}",
          f"algorithm.rewards={{functions: [{{function: {EXACT}, name: overlong}}]}}", "algorithm.overlong_buffer_length=4"],
         "algorithm.rewards.functions.0.name: reward_overlong is already the name of another metric"),
        (["tracking.primary_metric=eval/reward_exact"],
         "tracking.primary_metric: this experiment does not produce 'eval/reward_exact' (did you mean 'eval/reward_exact_match'"),
        (["algorithm.kind=dapo", *SECTIONS, "algorithm.overlong_buffer_length=17"],
         "algorithm.overlong_buffer_length: must be at most algorithm.rollout.max_new_tokens (16), got 17"),
        (["algorithm.kind=ppo", *SECTIONS, "algorithm.critic.init={kind: random}"],
         "algorithm.critic.init.kind: must be one of 'experiment', 'path', 'hub', got 'random'"),
        (["algorithm.kind=ppo", *SECTIONS, "algorithm.critic.init={kind: experiment, name: good}"],
         "algorithm.critic.init.name: experiment 'good' cannot be its own critic"),
        (["algorithm.kind=ppo", *SECTIONS, "algorithm.advantage_estimator=rloo"], "algorithm.advantage_estimator: unknown field"),
    ],
)  # fmt: skip
def test_mistakes(rl, folder, overrides, message):
    first, *more = folder.mistakes(*overrides, name="rl.yaml")
    assert not more and first.partition(": ")[2].startswith(message), first


def test_what_is_missing_is_said_where_it_would_stand(rl, folder):
    folder.write("spec.yaml", "extends: good.yaml\nalgorithm: {kind: ppo}\n")
    lines = folder.mistakes()
    assert "spec.yaml:2:1: algorithm.rollout: missing" in lines and "spec.yaml:2:1: algorithm.rewards: missing" in lines
    folder.write("spec.yaml", "extends: rl.yaml\nalgorithm:\n  rewards:\n    functions: [{weight: 2}]\n")
    assert folder.mistakes() == ["spec.yaml:4:17: algorithm.rewards.functions.0.function: missing"]


def test_rows_of_a_mesh_are_answers(rl, folder):
    """1 prompt x 2 answers are 2 rows; evaluations of any size are filled up."""
    rl("training={batch_size: 2, micro_batch_size: 1, max_steps: 10, eval_batch_size: 3, eval_every: 5}", "mesh.fsdp=2")
    (line,) = folder.mistakes("mesh.fsdp=4", "training.micro_batch_size=1", name="rl.yaml")
    assert line == (
        "--set #2: training.micro_batch_size: 1 prompts x 2 answers (algorithm.num_generations) cannot be split evenly over 4 "
        "devices (mesh.fsdp)"
    )
    (line,) = folder.mistakes("training.micro_batch_size=3", "training.batch_size=6", name="rl.yaml", devices=12)
    assert line.startswith("--set #1: training.micro_batch_size: 3 prompts x 2 answers") and line.endswith(
        "over 12 devices (mesh.fsdp)"
    )
