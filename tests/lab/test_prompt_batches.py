"""What reinforcement learning reads: every row once an epoch under a number of its own, resumed exactly, with its columns."""

import itertools
import json

import numpy as np
import pytest

from tunix_lab.data.chat import render_prompt
from tunix_lab.data.pipeline import train_batches
from tunix_lab.data.tokenizer import Tokenizer
from tunix_lab.data.tokenizer_training import train_tokenizer
from tunix_lab.errors import UserError
from tunix_lab.lab.build import build_data
from tunix_lab.lab.datasets import load_dataset
from tunix_lab.lab.prompt_batches import PromptEvalBatches, PromptTrainBatches
from tunix_lab.lab.prompts import sample_prompts
from tunix_lab.spec import ExperimentSpec

ROWS = [{"prompt": f"{i} + {i}", "answer": str(2 * i), **({"hard": i > 5} if i else {})} for i in range(10)]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("project")
    for name, rows in {"a": ROWS, "b": ROWS[:3], "c": [{"q": row["prompt"], "gold": row["answer"]} for row in ROWS]}.items():
        (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train_tokenizer([{"text": row["prompt"]} for row in ROWS], 280, home / "tokenizer")
    return home


@pytest.fixture(scope="module")
def tokenizer(home):
    return Tokenizer.load(home / "tokenizer")


def spec_of(rollout=(), samples=None, every=1, **data) -> ExperimentSpec:
    return ExperimentSpec.model_validate(
        {
            "name": "prompts",
            "seed": 3,
            "model": {"family": "gemma3", "size": "nano", "init": {"kind": "random"}},
            "tokenizer": {"path": "tokenizer"},
            "algorithm": {
                "kind": "grpo",
                "rollout": {"max_new_tokens": 8, "max_prompt_length": 64, **dict(rollout)},
                "rewards": {"functions": [{"function": "tunix_lab.tasks.arithmetic:exact_match"}]},
            },
            "data": {"kind": "prompts", "train": "a.jsonl", "validation": "a.jsonl"} | data,
            "optimizer": {"learning_rate": 1e-3},
            "training": {"max_steps": 9, "batch_size": 2, "eval_batch_size": 4, "eval_every": every},
            "checkpoint": {"every": every},
            "samples": samples,
            "tracking": {"experiment": "test", "primary_metric": "eval/reward"},
        }
    )


def train(home, tokenizer, prompts=4, seed=3, **data) -> PromptTrainBatches:
    return PromptTrainBatches(load_dataset(spec_of(**data), home, "train", tokenizer), prompts=prompts, seed=seed)


def test_a_batch(home, tokenizer):
    batch = next(train(home, tokenizer))
    assert sorted(batch) == ["answer", "prompt_ids", "prompts", "sample_ids"]  # not all rows say whether they are hard
    assert batch["sample_ids"].dtype == np.int64 and len(batch["prompts"]) == 4
    for i, row in enumerate(batch["sample_ids"]):
        assert batch["prompts"][i] == ROWS[row]["prompt"] and batch["answer"][i] == ROWS[row]["answer"]
        ids = batch["prompt_ids"][i]
        assert ids.dtype == np.int32 and ids.tolist() == render_prompt(tokenizer, ROWS[row]["prompt"]).tolist()


def test_the_order_is_that_of_every_run_and_ids_count_epochs(home, tokenizer):
    """30 prompts of 10 rows are 3 epochs: every row comes once in each, and never under a number that it had before."""
    ids = np.concatenate([batch["sample_ids"] for batch in itertools.islice(train(home, tokenizer, prompts=6), 5)])
    others = train_batches([{"row": np.int32(i)} for i in range(10)], batch_size=5, seed=3)
    assert (ids % 10).tolist() == np.concatenate([batch["row"] for batch in itertools.islice(others, 6)]).tolist()
    assert (ids // 10).tolist() == [0] * 10 + [1] * 10 + [2] * 10 and len(set(ids.tolist())) == 30
    assert (ids[:10] % 10).tolist() != (ids[10:20] % 10).tolist()


@pytest.mark.parametrize("prompts", [2, 5])
def test_ids_do_not_depend_on_the_size_of_batches(home, tokenizer, prompts):
    def stream(size):
        return np.concatenate([b["sample_ids"] for b in itertools.islice(train(home, tokenizer, prompts=size), 20 // size)])

    assert stream(prompts).tolist() == stream(4).tolist()


def test_resumed_where_it_stood(home, tokenizer):
    straight = train(home, tokenizer)
    for _ in range(4):  # into the second epoch
        next(straight)
    state = json.loads(json.dumps(straight.get_state()))
    resumed = train(home, tokenizer)
    resumed.set_state(state)
    for _ in range(3):
        a, b = next(straight), next(resumed)
        assert a["sample_ids"].tolist() == b["sample_ids"].tolist() and a["prompts"] == b["prompts"]
    with pytest.raises(UserError, match="cannot resume: the checkpoint was made with seed = 3, this run has 4"):
        train(home, tokenizer, seed=4).set_state(state)
    with pytest.raises(UserError, match="cannot resume at row 16 with micro batches of 5"):
        train(home, tokenizer, prompts=5).set_state(state)


def test_ids_of_a_mixture_are_places(home, tokenizer):
    """The 3 rows of b come four times as often as the 10 of a, within what is one epoch of all."""
    mixture = [{"path": "a.jsonl", "weight": 1}, {"path": "b.jsonl", "weight": 4}]
    batches = list(itertools.islice(train(home, tokenizer, train=mixture), 5))
    assert np.concatenate([batch["sample_ids"] for batch in batches]).tolist() == list(range(20))
    prompts = [prompt for batch in batches for prompt in batch["prompts"]]
    assert sum(prompt in {"0 + 0", "1 + 1", "2 + 2"} for prompt in prompts) >= 15
    resumed = train(home, tokenizer, train=mixture)
    resumed.set_state({**resumed.get_state(), "next_row": 8})
    assert next(resumed)["prompts"] == batches[2]["prompts"]


def test_processes_read_their_share(home, tokenizer):
    dataset = load_dataset(spec_of(), home, "train", tokenizer)
    whole = train(home, tokenizer)
    shares = [PromptTrainBatches(dataset, prompts=4, seed=3, process_index=i, process_count=2) for i in range(2)]
    for _ in range(4):
        expected, parts = next(whole), [next(share) for share in shares]
        assert np.concatenate([part["sample_ids"] for part in parts]).tolist() == expected["sample_ids"].tolist()
        assert [prompt for part in parts for prompt in part["prompts"]] == expected["prompts"]


def test_an_evaluation_reads_every_row_once(home, tokenizer):
    batches = PromptEvalBatches(load_dataset(spec_of(), home, "validation", tokenizer), 4)
    for _ in range(2):  # and so again
        sizes = [batch["sample_ids"].tolist() for batch in batches]
        assert sizes == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]] and len(batches) == 3
    assert [prompt for batch in batches for prompt in batch["prompts"]] == [row["prompt"] for row in ROWS]


def test_columns_under_other_names_and_dropped_rows(home, tokenizer):
    longest = len(render_prompt(tokenizer, "7 + 7"))
    data = {"train": "c.jsonl", "columns": {"prompt": "q", "answer": "gold"}}
    batch = next(train(home, tokenizer, **data))
    assert batch["answer"] == batch["gold"] == [ROWS[row]["answer"] for row in batch["sample_ids"]]
    assert batch["q"] == batch["prompts"]
    rows = [{"prompt": "7 + 7 + 7 + 7", "answer": "28"}, *ROWS[7:9]]
    (home / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = spec_of({"max_prompt_length": longest}, train="d.jsonl", overlong="drop")
    dropped = PromptTrainBatches(load_dataset(spec, home, "train", tokenizer), prompts=2, seed=0)
    batch = next(dropped)
    assert sorted(zip(batch["sample_ids"], batch["answer"], strict=True)) == [(0, "14"), (1, "16")]


def test_a_column_that_rewards_could_not_get(home, tokenizer):
    (home / "e.jsonl").write_text(json.dumps({"prompt": "1", "completions": "2"}) + "\n")
    with pytest.raises(
        UserError, match=r"train: rewards are called with prompts and completions, .* own column 'completions' has"
    ):
        train(home, tokenizer, prompts=1, train="e.jsonl")


def test_the_data_of_a_run(home, tokenizer, tmp_path):
    """Batches are of rollout.prompts, evaluations of eval_batch_size; the second time the tokens come from the cache."""
    spec = spec_of({"prompts": 6}, samples={"every": 3, "count": 3}, every=3)
    for _ in range(2):
        data = build_data(spec, home, tokenizer, tmp_path / "cache")
        assert isinstance(data.train_batches, PromptTrainBatches) and len(data.eval_batches) == 3
        assert len(next(data.train_batches)["prompts"]) == 6
        assert [prompt.text for prompt in data.prompts] == ["0 + 0", "1 + 1", "2 + 2"]
        assert data.prompts[1].reference == "2"
    assert len(list((tmp_path / "cache").iterdir())) == 2  # a split each


def test_samples_are_of_the_prompt_whatever_else_a_row_has(home, tokenizer):
    """A column named like those of other kinds of data is one for rewards."""
    row = {"prompt": "3 + 3", "text": "not the prompt", "messages": [{"role": "user", "content": "nor this"}], "answer": 6}
    (home / "f.jsonl").write_text(json.dumps(row) + "\n")
    spec = spec_of(samples={"every": 3, "count": 1}, every=3, train="f.jsonl", validation="f.jsonl")
    for named in (spec, spec.model_copy(update={"samples": spec.samples.model_copy(update={"prompts": "f.jsonl"})})):
        [prompt] = sample_prompts(named, home, load_dataset(named, home, "validation", tokenizer), tokenizer)
        assert (prompt.text, prompt.reference) == ("3 + 3", "6")
        assert prompt.ids.tolist() == render_prompt(tokenizer, "3 + 3").tolist()
