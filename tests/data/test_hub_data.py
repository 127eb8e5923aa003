"""Datasets of the hub: one file of one commit, fetched once, and what a user reads when the hub gives nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fake_hub import TOKEN, FakeHub, serve

from tunix_lab._hub_errors import Wanted, explained
from tunix_lab.data.files import read_rows
from tunix_lab.data.rows import place_of

REPO = "lab/sums"
NAME = f"datasets/{REPO}"
ROWS = b'{"question": "1+1", "answer": "2"}\n'
# huggingface_hub reads its settings when it is imported: each fetch is a process of its own.
PROGRAM = """
import sys
from tunix_lab.data.hub import fetch_file
from tunix_lab.errors import UserError
try:
    print(fetch_file(*sys.argv[1:]))
except UserError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.fixture
def hub():
    with serve() as hub:
        yield hub


def fetch(hub: FakeHub, home: Path, revision: str, file: str = "data/train.jsonl", repo: str = REPO, **environment: str):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, repo, revision, file],
        env=hub.environment(home, **environment),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, Path(done.stdout.strip()), done.stderr.strip()


def test_a_file_is_fetched_once_and_needs_no_network_again(hub, tmp_path):
    first = hub.add(NAME, {"data/train.jsonl": ROWS, "README.md": b"for people"})
    hub.add(NAME, {"data/train.jsonl": ROWS * 2, "README.md": b"newer"})
    code, path, problem = fetch(hub, tmp_path, first)
    assert (code, problem) == (0, "")
    rows = read_rows(path, {"prompt": "question"})
    assert rows[0]["prompt"] == "1+1" and len(rows) == 1 and place_of(rows, 0) == f"{path}:1"
    assert not [asked for asked in hub.asked if "README" in asked[1]]
    asked = len(hub.asked)
    assert fetch(hub, tmp_path, first, HF_HUB_OFFLINE="1") == (0, path, "")
    assert fetch(hub, tmp_path, first) == (0, path, "")
    assert len(hub.asked) == asked


def test_what_is_not_there(hub, tmp_path):
    commit = hub.add(NAME, {"data/train.jsonl": ROWS})
    hub.add("lab/model", {"config.json": b"{}"})
    code, _, problem = fetch(hub, tmp_path, commit, "data/trian.jsonl")
    assert code == 2 and problem == (
        f"the dataset {REPO} has no file 'data/trian.jsonl' at {commit}: "
        f"https://huggingface.co/datasets/{REPO}/tree/{commit} lists them"
    )
    code, _, problem = fetch(hub, tmp_path, "f" * 40)
    assert code == 2 and problem.startswith(f"the dataset {REPO} has no revision '{'f' * 40}'")
    code, _, problem = fetch(hub, tmp_path, commit, repo="lab/model")
    assert code == 2 and problem.startswith(
        "the dataset lab/model: the hub has no such repository, or it is private: check the spelling (models are no datasets)"
    )


def test_access(hub, tmp_path):
    commit = hub.add(NAME, {"data/train.jsonl": ROWS}, access="gated")
    code, _, problem = fetch(hub, tmp_path, commit)
    assert code == 3 and problem.startswith(f"the dataset {REPO} is gated: accept its terms on https://huggingface.co/datasets/")
    code, _, problem = fetch(hub, tmp_path, commit, HF_TOKEN="hf_wrong")
    assert code == 3 and "the hub refuses the token (status 401)" in problem and "hf_wrong" not in problem
    hub.repos[NAME].access = "private"
    assert fetch(hub, tmp_path, commit)[0] == 2
    assert fetch(hub, tmp_path, commit, HF_TOKEN=TOKEN)[0] == 0


# The hub's client asks again for twenty seconds before it gives up.
PATIENT = [pytest.param(how, marks=pytest.mark.slow) for how in ("broken", "gone")]


@pytest.mark.parametrize("how", [*PATIENT, "offline"])
def test_a_hub_that_gives_nothing(hub, tmp_path, how):
    commit = hub.add(NAME, {"data/train.jsonl": ROWS}, access="broken" if how == "broken" else "public")
    reasons = {"broken": "status 503", "offline": "HF_HUB_OFFLINE is set", "gone": "ConnectError"}
    more = {"offline": {"HF_HUB_OFFLINE": "1"}, "gone": {"HF_ENDPOINT": "http://127.0.0.1:1"}}.get(how, {})
    code, _, problem = fetch(hub, tmp_path, commit, **more)
    assert code == 3 and reasons[how] in problem
    assert f"`hf download {REPO} data/train.jsonl --repo-type dataset --revision {commit}`" in problem


def test_a_cache_that_cannot_be_written(hub, tmp_path):
    commit = hub.add(NAME, {"data/train.jsonl": ROWS})
    (tmp_path / "hub").write_text("a file where the cache should be")
    code, _, problem = fetch(hub, tmp_path, commit)
    assert code == 3 and "cannot be written to" in problem and "HF_HOME" in problem


def test_no_secret_is_told():
    error = RuntimeError("https://me:hf_Secret1@hub.test/x refused hf_Secret2")
    problem = str(explained(error, Wanted(REPO, "a" * 40, True, "a.jsonl", "name a file")))
    assert "RuntimeError: … refused …" in problem and "Secret" not in problem


def test_programs_read_the_answer(hub, tmp_path):
    """The double answers as the hub does: its listing of a dataset is JSON with the commit."""
    import urllib.request

    commit = hub.add(NAME, {"a.jsonl": ROWS})
    with urllib.request.urlopen(f"{hub.url}/api/{NAME}/revision/main") as answer:
        assert json.loads(answer.read())["sha"] == commit
