"""What is no reward: an exception, None, NaN, a hang, a crash, … in this process and in the pool, at one answer of twelve.

Every fault is named with its function and its answer, none becomes a number, and no run freezes.
"""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from tunix_lab.errors import TrainingFailed, UserError
from tunix_lab.rl.reward_pool import RewardPool
from tunix_lab.rl.rewards import RewardProblem, in_process

GROUP = 3
PROMPTS = [f"prompt {i // GROUP}" for i in range(12)]
COMPLETIONS = [f"answer {i}" for i in range(12)]
BAD = 7

# A module of a user's project. `bad` marks the answer that goes wrong.
MODULE = '''
import os, signal, sys, time

def good(prompts, completions, **columns):
    return [len(c) / 8 for c in completions]

def _at_the_bad_one(completions, act):
    for completion in completions:
        if completion.endswith(" 7"):
            act()
    return [0.5] * len(completions)

def raises(prompts, completions, **columns):
    return _at_the_bad_one(completions, lambda: 1 / 0)

def leaves(prompts, completions, **columns):
    return _at_the_bad_one(completions, lambda: sys.exit("enough"))

def hangs(prompts, completions, **columns):
    return _at_the_bad_one(completions, lambda: time.sleep(1000))

def loops(prompts, completions, **columns):
    def forever():
        while True:
            pass
    return _at_the_bad_one(completions, forever)

def dies(prompts, completions, **columns):
    return _at_the_bad_one(completions, lambda: os.kill(os.getpid(), signal.SIGKILL))

def exits(prompts, completions, **columns):
    return _at_the_bad_one(completions, lambda: os._exit(3))

def hoards(prompts, completions, **columns):
    return _at_the_bad_one(completions, lambda: bytearray(2 * 2**30))

def _with(value, completions):
    return [value if c.endswith(" 7") else 0.5 for c in completions]

def none(prompts, completions, **columns): return _with(None, completions)
def nan(prompts, completions, **columns): return _with(float("nan"), completions)
def inf(prompts, completions, **columns): return _with(float("-inf"), completions)
def huge(prompts, completions, **columns): return _with(1e300, completions)
def text(prompts, completions, **columns): return _with("1.0", completions)
def listed(prompts, completions, **columns): return _with([1.0], completions)

def nothing(prompts, completions, **columns):
    return None if any(c.endswith(" 7") for c in completions) else [0.5] * len(completions)

def fewer(prompts, completions, **columns):
    return [0.5 for c in completions if not c.endswith(" 7")]

def mapping(prompts, completions, **columns):
    return {c: 1.0 for c in completions} if any(c.endswith(" 7") for c in completions) else [0.5] * len(completions)

def of_groups(prompts, completions, **columns):
    """A reward of an answer among the others of its prompt; it fails for answer 7."""
    assert not any(c.endswith(" 7") for c in completions)
    return [float(len({c for c, p in zip(completions, prompts) if p == prompt})) for prompt in prompts]

def together(prompts, completions, **columns):
    """Fails where it is asked about answer 7 and others."""
    if len(completions) > 1 and any(c.endswith(" 7") for c in completions):
        raise ValueError("too many")
    return [0.5] * len(completions)
'''

# name -> what the message says of it
IN_BOTH = {
    "raises": r"raised ZeroDivisionError: division by zero at .*my_rewards.py:14",
    "leaves": "raised SystemExit: enough",
    "none": "gave None; a reward is a finite number",
    "nan": "gave nan; a reward is a finite number",
    "inf": "gave -inf; a reward is a finite number",
    "huge": "gave 1e[+]300; a reward is a finite number",
    "text": "gave '1.0'; a reward is a finite number",
    "listed": r"gave \[1.0\]; a reward is a finite number",
    "nothing": "returned None; it must return one number for each answer",
    "fewer": "returned 0 rewards for 1 answer",
    "mapping": r"returned \{'answer 7': 1.0\}; it must return one number for each answer, in a list",
}
IN_THE_POOL = {
    "hangs": "took longer than 1.5 s",
    "loops": "took longer than 1.5 s",
    "dies": r"ended its process: killed by SIGKILL \(was it out of memory\?\)",
    "exits": "ended its process: exit code 3",
    "hoards": "raised MemoryError at .*my_rewards.py",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    (folder / "my_rewards.py").write_text(MODULE)
    return folder


@pytest.fixture(scope="module")
def functions(project):
    """The module's functions, as a script in the project would have them."""
    namespace = {"__name__": "my_rewards"}
    exec(compile(MODULE, project / "my_rewards.py", "exec"), namespace)
    return namespace


@pytest.fixture(scope="module")
def pools(project):
    """`pools(name, …)`: a pool of that function, kept for the tests of this file."""
    made = []

    def make(*names, **options):
        options = {"home": project, "workers": 2, "timeout_s": 60.0, **options}
        made.append(RewardPool([f"my_rewards:{name}" for name in names], **options))
        return made[-1]

    yield make
    for pool in made:
        pool.close()
        assert pool._workers == []


def check_stops(rewards, function, message):
    with pytest.raises(RewardProblem, match=message) as caught:
        rewards.score(PROMPTS, COMPLETIONS, {}, GROUP)
    problem = caught.value
    assert (problem.function, problem.index, problem.prompt, problem.completion) == (function, BAD, "prompt 2", "answer 7")
    for part in (f"reward {function}: ", "for answer 7 of 12", "prompt: 'prompt 2'", "completion: 'answer 7'"):
        assert part in str(problem)
    assert isinstance(problem, TrainingFailed) and problem.exit_code == 4


def check_masks(rewards, function, told):
    scores = rewards.score(PROMPTS, COMPLETIONS, {}, GROUP)
    assert np.flatnonzero(np.isnan(scores[function])).tolist() == [BAD]
    assert scores[function][np.arange(12) != BAD].tolist() == [0.5] * 11
    assert not np.isnan(scores["good"]).any()
    assert [(problem.function, problem.index) for problem in told] == [(function, BAD)]


@pytest.mark.parametrize(("name", "message"), IN_BOTH.items())
def test_reward_faults_in_this_process(functions, name, message):
    check_stops(in_process([functions["good"], functions[name]]), name, message)
    told = []
    check_masks(in_process([functions["good"], functions[name]], on_error="mask", report=told.append), name, told)


@pytest.mark.parametrize(("name", "message"), (IN_BOTH | IN_THE_POOL).items())
def test_reward_faults_in_the_pool(pools, name, message):
    options = {"hoards": {"memory_mb": 1536}, "hangs": {"timeout_s": 1.5}, "loops": {"timeout_s": 1.5}}.get(name, {})
    told = []
    started = time.monotonic()
    with pools("good", name, **options) as pool:
        check_stops(pool, name, message)
        pool._on_error, pool._report = "mask", told.append  # the same workers once more
        check_masks(pool, name, told)
        assert time.monotonic() - started < 60.0
        # and once more after all that
        assert not np.isnan(pool.score(PROMPTS[:7], COMPLETIONS[:7], {})[name]).any()


def test_the_cause_is_chained(functions):
    with pytest.raises(RewardProblem) as caught:
        in_process(functions["raises"]).score(PROMPTS, COMPLETIONS, {}, GROUP)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("in_pool", [False, True])
def test_the_others_of_a_group_are_scored_together(functions, pools, in_pool):
    """A reward may compare the answers to one prompt: of the group with the fault the other two are asked about together."""
    rewards = pools("of_groups", on_error="mask") if in_pool else in_process(functions["of_groups"], on_error="mask")
    values = rewards.score(PROMPTS, COMPLETIONS, {}, GROUP)["of_groups"]
    np.testing.assert_array_equal(values, [3, 3, 3, 3, 3, 3, 2, np.nan, 2, 3, 3, 3])


@pytest.mark.parametrize("in_pool", [False, True])
def test_what_fails_only_together(functions, pools, in_pool):
    def make(on_error):
        return pools("together", on_error=on_error) if in_pool else in_process(functions["together"], on_error=on_error)

    with pytest.raises(RewardProblem, match=r"ValueError: too many.*called for 3 answers together; for fewer of them it works"):
        make("stop").score(PROMPTS, COMPLETIONS, {}, GROUP)
    values = make("mask").score(PROMPTS, COMPLETIONS, {}, GROUP)["together"]
    assert np.flatnonzero(np.isnan(values)).tolist() == [6, 7, 8]


def test_long_texts_are_shortened(functions):
    with pytest.raises(RewardProblem) as caught:
        in_process(functions["raises"]).score(["p" * 5000], ["start" + "x" * 5000 + " 7"], {})
    assert len(str(caught.value)) < 1200 and "start" in str(caught.value) and " 7'" in str(caught.value)


def test_everything_fails_with_mask(functions):
    told = []
    rewards = in_process(lambda prompts, completions: [1 / 0], on_error="mask", report=told.append)
    assert np.isnan(rewards.score(PROMPTS, COMPLETIONS, {}, GROUP)["<lambda>"]).all()
    assert [problem.index for problem in told] == list(range(12))


def test_functions_that_cannot_be_imported(project):
    for reference, message in {
        "my_rewards:missing": "my_rewards:missing: importing it raised AttributeError.*no attribute 'missing'",
        "no_such_module:f": "no_such_module:f: importing it raised ModuleNotFoundError",
    }.items():
        with RewardPool([reference], home=project) as pool, pytest.raises(UserError, match=message) as caught:
            pool.score(PROMPTS, COMPLETIONS, {}, GROUP)
        assert caught.value.exit_code == 2


# ---- processes -------------------------------------------------------------------------------------------------------------


def pids(pool):
    return [worker._process.pid for worker in pool._workers]


def is_alive(pid):
    """Whether a process runs (and is no zombie)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False


def gone(processes, seconds=10.0):
    """Whether they all end within some seconds."""
    deadline = time.monotonic() + seconds
    while any(is_alive(pid) for pid in processes) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(is_alive(pid) for pid in processes)


def test_workers_start_late_and_end_with_the_pool(pools):
    with pools("good", workers=2) as pool:
        assert pids(pool) == []
        pool.score(PROMPTS, COMPLETIONS, {}, GROUP)
        first = pids(pool)
        assert len(first) == 2
        pool.score(PROMPTS, COMPLETIONS, {}, GROUP)
        assert pids(pool) == first
    assert gone(first) and pids(pool) == []
    pool.close()  # twice is no error


def test_an_idle_worker_that_is_killed_is_replaced(pools):
    """As the kernel does where memory runs out, whoever is to blame."""
    pool = pools("good", workers=2)
    before = pool.score(PROMPTS, COMPLETIONS, {}, GROUP)["good"]
    for pid in pids(pool):
        os.kill(pid, signal.SIGKILL)
    np.testing.assert_array_equal(pool.score(PROMPTS, COMPLETIONS, {}, GROUP)["good"], before)


def test_a_busy_worker_that_is_killed_once_costs_nothing(pools, project, tmp_path):
    """It was not the answer's fault: asked again, the function gives its number."""
    (project / "once.py").write_text(
        "import os, pathlib, signal\n"
        "def once(prompts, completions, marker, **columns):\n"
        "    mark = pathlib.Path(marker[0])\n"
        "    if not mark.exists():\n"
        "        mark.touch()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return [1.0] * len(completions)\n"
    )
    with RewardPool(["once:once"], home=project, on_error="mask") as pool:
        scores = pool.score(PROMPTS, COMPLETIONS, {"marker": [str(tmp_path / "mark")] * 12}, GROUP)
    assert scores["once"].tolist() == [1.0] * 12


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_its_parent(project, tmp_path, how):
    """Ctrl-C, or SIGKILL, while a function is in an endless loop and has started a process itself."""
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys
        from tunix_lab.rl.reward_pool import RewardPool
        with RewardPool(["slow:slow"], home={str(tmp_path)!r}, timeout_s=100) as pool:
            try:
                pool.score(["p"], ["c"], {{}})
            except KeyboardInterrupt:
                sys.exit(9)
        """)
    )
    (tmp_path / "slow.py").write_text(
        textwrap.dedent(f"""
        import os, pathlib, subprocess
        def slow(prompts, completions, **columns):
            child = subprocess.Popen(["sleep", "1000"])
            note = pathlib.Path({str(tmp_path)!r}) / "pids"
            note.with_suffix(".part").write_text(f"{{os.getpid()}} {{child.pid}}")
            note.with_suffix(".part").rename(note)
            while True:
                pass
        """)
    )
    parent = subprocess.Popen([sys.executable, str(script)], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    try:
        while not (tmp_path / "pids").exists():
            assert parent.poll() is None
            time.sleep(0.02)
        worker, child = map(int, (tmp_path / "pids").read_text().split())
        assert is_alive(worker) and is_alive(child)
        parent.send_signal(how)
        assert parent.wait(20) == (9 if how == signal.SIGINT else -9)
        assert gone([worker, child])
    finally:
        parent.kill()
        parent.wait()
        subprocess.run(["kill", "-9", str(child)], stderr=subprocess.DEVNULL, check=False)


def test_an_error_in_this_process_leaves_no_busy_worker(pools):
    """A failure while calls are under way: whoever was busy is gone, and the pool can be used again."""
    pool = pools("hangs", "raises")
    started = time.monotonic()
    with pytest.raises(RewardProblem, match="ZeroDivisionError"):
        pool.score(PROMPTS[6:9], COMPLETIONS[6:9], {}, GROUP)
    assert time.monotonic() - started < 30.0 and not any(worker.is_busy for worker in pool._workers)
    assert pool.score(PROMPTS[:3], COMPLETIONS[:3], {}, GROUP)["raises"].tolist() == [0.5] * 3
