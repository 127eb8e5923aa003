"""The pool when all goes well: the same numbers as in one process, groups kept together, no jax, prints kept apart."""

import numpy as np
import pytest

from tunix_lab.rl.reward_pool import RewardPool
from tunix_lab.rl.rewards import in_process
from tunix_lab.tasks.arithmetic import exact_match

MODULE = """
import sys, time
import helper_of_mine
print("a line of the user's")

def has_jax(prompts, completions, **columns):
    import tunix_lab.tasks.arithmetic
    return [float("jax" in sys.modules)] * len(completions)

def call_size(prompts, completions, **columns):
    return [float(len(completions))] * len(completions)

def naps(prompts, completions, **columns):
    time.sleep(0.1)
    return [helper_of_mine.ONE] * len(completions)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    (folder / "pool_rewards.py").write_text(MODULE)
    (folder / "helper_of_mine.py").write_text("ONE = 1.0\n")
    return folder


@pytest.fixture(scope="module")
def pool(project):
    names = ["has_jax", "call_size", "naps"]
    references = ["tunix_lab.tasks.arithmetic:exact_match", *(f"pool_rewards:{name}" for name in names)]
    with RewardPool(references, home=project, workers=2) as pool:
        yield pool


def test_the_pool_gives_what_one_process_gives(pool):
    rng = np.random.default_rng(0)
    answers = [str(i) for i in rng.integers(0, 3, 20)]
    completions = [f"<answer>{i}</answer>" for i in rng.integers(0, 3, 20)]
    columns = {"answer": np.array(answers), "nested": [{"a": [1, None]}] * 20}
    ours = pool.score(["p"] * 20, completions, columns, 4)["exact_match"]
    wanted = in_process(exact_match).score(["p"] * 20, completions, columns, 4)["exact_match"]
    np.testing.assert_array_equal(ours, wanted)
    assert 0 < ours.sum() < 20 and ours.dtype == np.float32


def test_how_the_work_is_shared(pool):
    """Five groups of four over two workers: three groups and two, without jax, with the project's other modules."""
    scores = pool.score(["p"] * 20, ["c"] * 20, {"answer": ["1"] * 20}, 4)
    assert scores["call_size"].tolist() == [12.0] * 12 + [8.0] * 8
    assert set(scores["has_jax"]) == {0.0} and set(scores["naps"]) == {1.0}
    assert len(pool._workers) == 2
    single = pool.score(["p"] * 4, ["c"] * 4, {"answer": ["1"] * 4}, 4)
    assert single["call_size"].tolist() == [4.0] * 4


def test_names_and_weights(project):
    references = ["pool_rewards:naps", "pool_rewards:naps"]
    with RewardPool(references, home=project, weights=[2.0, 0.5], names=["first", "second"]) as pool:
        scores = pool.score(["p"], ["c"], {})
    assert {name: values.tolist() for name, values in scores.items()} == {"first": [2.0], "second": [0.5]}
    assert RewardPool(references).names == ["naps", "naps_2"]


def test_a_large_batch(pool):
    """More than a pipe holds, both ways."""
    n = 4000
    scores = pool.score(["p" * 500] * n, ["c" * 500] * n, {"answer": ["1"] * n}, 4)
    assert scores["exact_match"].tolist() == [0.0] * n


def test_what_functions_print_is_no_output_of_ours(project, capfd):
    with RewardPool(["pool_rewards:naps"], home=project) as pool:
        pool.score(["p"], ["c"], {})
    captured = capfd.readouterr()
    assert captured.out == "" and "a line of the user's" in captured.err
