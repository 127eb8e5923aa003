"""`tunix-lab trajectories`: groups, answers in full, what failed, and rewards that are computed again."""

import json

import numpy as np
import pytest
import typer
from hand_made_rollouts import PROMPTS, rollout
from typer.testing import CliRunner

from tunix_lab.cli.main import app as every_verb
from tunix_lab.cli.trajectories import trajectories
from tunix_lab.data.tokenizer_training import train_tokenizer
from tunix_lab.errors import UserError
from tunix_lab.lab.record.journal import Journal
from tunix_lab.lab.record.trajectories import record_trajectories

RUN = "grpo_nano-20261123-080000-3a61"
PARAMS = {
    "algorithm.rewards.functions.0.function": "my_rewards:exact_match",
    "algorithm.rewards.functions.0.weight": 1.0,
    "algorithm.rewards.functions.0.name": None,
    "algorithm.rewards.functions.1.function": "my_rewards:length",
    "algorithm.rewards.functions.1.weight": 0.5,
    "algorithm.rewards.functions.1.name": "shape",
}
SPEC = """
name: grpo_nano
model: {family: gemma3, size: nano, init: {kind: random}}
tokenizer: {path: tokenizer}
algorithm:
  kind: grpo
  rollout: {max_new_tokens: 8, max_prompt_length: 24}
  rewards: {functions: [{function: 'tunix_lab.tasks.arithmetic:exact_match'}]}
data: {kind: prompts, train: a.jsonl, validation: a.jsonl}
optimizer: {learning_rate: 1.0e-3}
training: {max_steps: 2, batch_size: 2}
tracking: {experiment: arithmetic, primary_metric: eval/reward}
"""
REWARDS = """
def exact_match(prompts, completions, answer, **columns):
    return [float(c.endswith(a)) for c, a in zip(completions, answer)]

def length(prompts, completions, **columns):
    return [1.0 if len(c) == 1 else 0.0 for c in completions]
"""


@pytest.fixture
def run_dir(make_run, tmp_path):
    """A run of three rollouts and an evaluation, with its tokenizer and the module of its rewards."""
    tokenizer = train_tokenizer([{"text": "What is 1 + 2?"}], 262, tmp_path / "tokenizer")
    run_dir = make_run(RUN, algorithm="grpo", params=PARAMS)
    (run_dir / "resolved.yaml").write_text(SPEC)
    (tmp_path / "my_rewards.py").write_text(REWARDS)
    with Journal.open(run_dir) as journal:
        for step in (0, 4, 8):
            record_trajectories(journal, rollout(step, tokenizer=tokenizer))
        record_trajectories(journal, rollout(8, "eval", tokenizer=tokenizer))
    return run_dir


@pytest.fixture
def invoke(monkeypatch, tmp_path, run_dir):
    """Runs the command in a project at `tmp_path`, on a terminal of so many columns; returns what it printed."""
    monkeypatch.setenv("TUNIX_LAB_HOME", str(tmp_path))
    app = typer.Typer()
    app.command()(trajectories)

    def call(*arguments, width=160, error=False):
        monkeypatch.setenv("COLUMNS", str(width))
        result = CliRunner().invoke(app, arguments)
        if error:
            assert isinstance(result.exception, UserError), result.exception
            return str(result.exception)
        assert result.exception is None, result.exception
        return result.stdout

    return call


def test_it_is_a_verb():
    assert "trajectories" in CliRunner().invoke(every_verb, ["--help"]).stdout


def test_the_last_rollout_its_groups_and_the_best_answer(invoke):
    lines = [" ".join(line.split()) for line in invoke("3a61").splitlines()]
    assert lines[0] == f"{RUN} train step 8: 2 prompts, 4 answers, reward 0.875"
    assert lines[1] == "prompt reward std rewards tokens cut off"
    assert lines[2].startswith("0 What is 1 + 1? 1 0.5 1.5 0.5 1") and lines[3].endswith("1")
    assert lines[4] == "before: --step 4; 3 in all"
    assert lines[6] == "step 8, prompt 0, answer 0 reward 1.5 (exact_match 1, shape 0.5), 1 tokens, stop, advantage 1"
    assert lines[7:] == [PROMPTS[0], "2", "green: the model was sure, yellow and red: it was not", "answer: 2", "hard: False"]


def test_a_step_and_what_lies_before_and_after(invoke):
    assert "before: --step 0; after: --step 8; 3 in all" in invoke(RUN, "--step", "4")
    assert "train 3 rollouts: 6 prompts, 12 answers" in " ".join(invoke(RUN, "--all").split())
    assert "the only rollout; 1 in all" in invoke(RUN, "--mode", "eval")


def test_a_prompt_over_the_whole_run(invoke):
    lines = [line.split() for line in invoke(RUN, "--prompt", "2 + 3").splitlines()]
    assert lines[1][:2] == ["step", "prompt"] and [line[0] for line in lines[2:5]] == ["0", "4", "8"]


def test_the_best_the_worst_and_what_failed(invoke):
    def answers(*arguments):
        return [a["completion"] for a in json.loads(invoke(RUN, *arguments, "--json"))["answers"]]

    assert answers("--best", "2") == ["2", "It is 5"] and answers("--worst", "2") == ["3", "6"]
    assert answers("--failed", "exact_match") == ["3", "6"] and answers("--failed", "shape") == ["It is 5"]
    assert answers("--failed", "exact_match", "--best", "1") == ["3"]
    assert len(answers("--all")) == 12
    shown = invoke(RUN, "--worst", "2")
    assert shown.count("reward 0.5 (exact_match 0, shape 0.5)") == 2 and shown.count("\nstep 8, ") == 2
    assert "cut off, trains nothing" in invoke(RUN, "--failed", "shape")


def test_for_programs(invoke):
    content = json.loads(invoke(RUN, "--step", "4", "--json"))
    assert (content["run_id"], content["mode"], content["steps"]) == (RUN, "train", [0, 4, 8])
    assert [a["reward"] for a in content["answers"]] == [1.5, 1.0, 0.5, 0.5]
    assert content["answers"][0]["rewards"] == {"exact_match": 1.0, "shape": 0.5}


def test_a_narrow_terminal_and_a_lost_tokenizer_show_plain_text(invoke, tmp_path):
    assert "green" not in invoke(RUN, width=80)
    (tmp_path / "tokenizer").rename(tmp_path / "gone")
    shown = invoke(RUN)
    assert "green" not in shown and "\n2\n" in shown


def test_tokens_of_unequal_advantages(invoke, run_dir):
    with Journal.open(run_dir) as journal:
        made = rollout(9, completions=["ab"] * 4, completion_ids=[np.asarray([65, 66], np.int32)] * 4,
                       sampler_logps=[np.zeros(2, np.float32)] * 4, advantages=[np.asarray([1, -1], np.float32)] * 4)  # fmt: skip
        record_trajectories(journal, made)
    shown = invoke(RUN)
    assert "green: better than expected, red: worse" in shown and ", advantage " not in shown


def test_what_a_model_says_does_not_steer_the_terminal(invoke, run_dir):
    with Journal.open(run_dir) as journal:
        record_trajectories(journal, rollout(9, prompts=["[red]\x1b[2J"] * 4, completions=["\x1b[31m[bold]x"] * 4))
    shown = invoke(RUN, width=80)
    assert "\x1b" not in shown and "[bold]x" in shown and "[red]" in shown


def test_a_reward_of_the_run_says_the_same_again(invoke):
    """By its function, and with its own weight: 0.5 for an answer of one character, which is what the run has as `shape`."""
    assert "mean reward 0.5 before, 0.5 now; 0 answers differ" in invoke(RUN, "--reward", "my_rewards:exact_match")
    shown = invoke(RUN, "--reward", "my_rewards:length", "--all")
    assert "12 answers of 3 rollouts, by my_rewards:length" in shown
    assert "mean reward 0.375 before, 0.375 now; 0 answers differ" in shown


def test_a_reward_of_the_same_name_takes_the_place_of_the_runs_own(invoke, tmp_path):
    """With its weight: 0.5 x 1 for every answer, against the 0.5, 0.5, 0.5 and 0 that the run gave as `shape`."""
    (tmp_path / "newer_rewards.py").write_text("def shape(prompts, completions, **c): return [1.0 for _ in completions]")
    assert "mean reward 0.375 before, 0.5 now; 1 answers differ" in invoke(RUN, "--reward", "newer_rewards:shape")


def test_another_reward_is_compared_with_the_whole(invoke, tmp_path):
    (tmp_path / "other_rewards.py").write_text(
        "def words(prompts, completions, **c): return [float(len(x.split())) for x in completions]"
    )
    shown = invoke(RUN, "--reward", "other_rewards:words")
    assert "mean reward 0.875 before, 1.5 now; 4 answers differ" in shown
    assert "step 8, prompt 1, answer 1  1 → 3" in shown.split("\n\n")[1]  # by what differs most
    content = json.loads(invoke(RUN, "--reward", "other_rewards:words", "--json"))
    assert [(a["before"], a["now"]) for a in content["answers"]] == [(1.5, 1.0), (0.5, 1.0), (0.5, 1.0), (1.0, 3.0)]
    only = json.loads(invoke(RUN, "--reward", "other_rewards:words", "--prompt", "2 + 3", "--step", "0", "--json"))
    assert [a["now"] for a in only["answers"]] == [1.0, 3.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no run 'nowhere' in "),
        (["3a61", "--step", "5"], f"--step 5: {RUN} has no train rollout there, but at 0, 4, 8"),
        (["3a61", "--mode", "evel"], "--mode evel: must be one of train, eval (did you mean 'eval'?)"),
        (["3a61", "--failed", "shap"], "no reward 'shap' (did you mean 'shape'?); there are exact_match, shape"),
        (["3a61", "--reward", "my_rewards:lenth"], "my_rewards has no function 'lenth' (did you mean 'length'?)"),
    ],
)
def test_mistakes(invoke, arguments, message):
    assert invoke(*arguments, error=True).startswith(message)


def test_a_run_without_rollouts(invoke, make_run):
    make_run("sft_nano-20261123-080000-beef")
    said = (
        "sft_nano-20261123-080000-beef has no trajectories: runs of reinforcement learning keep them, from their first rollout on"
    )
    assert invoke("beef", error=True) == said
