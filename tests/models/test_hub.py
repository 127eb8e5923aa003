"""Models of the hub: what is fetched, what is not fetched again, and what a user reads when the hub gives nothing."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_hub import TOKEN, FakeHub, files_of, serve
from flax import nnx

from tunix_lab._hub_errors import Wanted, explained
from tunix_lab.data.tokenizer import Tokenizer
from tunix_lab.data.tokenizer_training import train_tokenizer
from tunix_lab.models.catalog import load_model, save_model
from tunix_lab.models.hub import MODEL_FILES, TOKENIZER_FILES, is_hub_id
from tunix_lab.sft.train_state import flat_params

REPO = "lab/tiny-gemma"
# huggingface_hub reads its settings when it is imported: each fetch is a process of its own.
PROGRAM = """
import dataclasses, json, sys
from tunix_lab.errors import UserError
from tunix_lab.models.hub import fetch
repo, revision, files = json.loads(sys.argv[1])
try:
    print(json.dumps(dataclasses.asdict(fetch(repo, revision, **({"files": files} if files else {}))), default=str))
except UserError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""
UNREAD = {
    "README.md": b"read by people",
    "consolidated.safetensors": b"the weights once more",
    "model.gguf": b"and once more",
    "pytorch_model.bin": b"and once more, as a pickle",
    "original/consolidated.00.pth": b"and once more",
    "onnx/config.json": b"{}",
    "onnx/model.safetensors": b"and once more",
}


@pytest.fixture(scope="module")
def model(tiny_decoder):
    return tiny_decoder(seed=5)


@pytest.fixture(scope="module")
def files(model, tmp_path_factory) -> dict[str, bytes]:
    """A model and its tokenizer, as a repository holds them."""
    folder = tmp_path_factory.mktemp("repository")
    save_model(flat_params(nnx.state(model)), model.config, folder)
    train_tokenizer([{"text": "one two three"}], 280, folder)
    return files_of(folder) | {"LICENSE": b"free"}


@pytest.fixture
def hub():
    with serve() as hub:
        yield hub


def fetched(hub: FakeHub, home: Path, repo: str, revision: str | None = None, files=None, **more: str):
    """`fetch` in a process of its own."""
    arguments = [sys.executable, "-c", PROGRAM, json.dumps([repo, revision, files])]
    return subprocess.run(arguments, env=hub.environment(home, **more), capture_output=True, text=True, timeout=60)


def folder_of(done: subprocess.CompletedProcess) -> Path:
    assert done.returncode == 0, done.stderr
    return Path(json.loads(done.stdout)["folder"])


def message(done: subprocess.CompletedProcess, exit_code: int) -> str:
    """The last line of the process, which must be all that a user has to read."""
    assert done.returncode == exit_code and "Traceback" not in done.stderr, done.stderr
    assert TOKEN not in done.stderr
    return done.stderr.splitlines()[-1]


def test_a_model_is_fetched_and_loads(hub, files, model, tmp_path):
    commit = hub.add(REPO, files)
    done = fetched(hub, tmp_path, REPO, commit)
    folder = folder_of(done)
    assert json.loads(done.stdout) == {"folder": str(folder), "repo": REPO, "commit": commit}
    assert folder.name == commit
    loaded = load_model(folder)
    assert loaded.config == model.config
    ours, theirs = flat_params(nnx.state(loaded)), flat_params(nnx.state(model))
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs | ours)
    assert Tokenizer.load(folder).decode(Tokenizer.load(folder).encode("one two")) == "one two"


def test_only_what_is_read_is_fetched(hub, files, tmp_path):
    index = {"model.safetensors.index.json": b"{}", "tokenizer.model": b"pieces", "generation_config.json": b"{}"}
    commit = hub.add(REPO, files | index | UNREAD)
    assert files_of(folder_of(fetched(hub, tmp_path, REPO, commit))) == files | index
    served = {path.rpartition(f"{commit}/")[2] for _, path, _ in hub.asked if "/resolve/" in path}
    assert served == (files | index).keys()


def test_a_tokenizer_is_fetched_without_the_weights_and_the_weights_are_added(hub, files, tmp_path):
    commit = hub.add(REPO, files)
    folder = folder_of(fetched(hub, tmp_path, REPO, commit, TOKENIZER_FILES))
    assert {path.name for path in folder.iterdir()} == files.keys() & set(TOKENIZER_FILES)
    Tokenizer.load(folder)
    assert folder_of(fetched(hub, tmp_path, REPO, commit)) == folder
    assert files_of(folder) == files


def test_a_commit_in_the_cache_needs_no_hub(files, tmp_path):
    with serve() as hub:
        commit = hub.add(REPO, files)
        first = folder_of(fetched(hub, tmp_path, REPO, commit))
        hub.asked.clear()
        assert folder_of(fetched(hub, tmp_path, REPO, commit)) == first and hub.asked == []
    for more in ({}, {"HF_HUB_OFFLINE": "1"}):
        assert folder_of(fetched(hub, tmp_path, REPO, commit, **more)) == first


def test_the_default_branch_is_told_by_its_commit(hub, files, tmp_path):
    old = hub.add(REPO, files | {"LICENSE": b"old"})
    new = hub.add(REPO, files)
    assert folder_of(fetched(hub, tmp_path, REPO)).name == new
    assert folder_of(fetched(hub, tmp_path, REPO, old)).name == old


def test_a_copy_made_elsewhere_as_the_message_says_is_enough(files, tmp_path):
    """`hf download … --exclude '*/*'` fills the cache that is carried to a machine without a network."""
    with serve() as hub:
        commit = hub.add(REPO, files | UNREAD)
        command = [str(Path(sys.executable).parent / "hf"), "download", REPO, "--revision", commit, "--exclude", "*/*"]
        subprocess.run(command, env=hub.environment(tmp_path / "there"), check=True, capture_output=True, timeout=60)
    shutil.copytree(tmp_path / "there", tmp_path / "here", symlinks=True)
    folder = folder_of(fetched(hub, tmp_path / "here", REPO, commit, HF_HUB_OFFLINE="1"))
    assert files.items() <= files_of(folder).items()


def test_the_command_of_a_spec_mistake_shows_the_commit(hub, files, tmp_path):
    commit = hub.add(REPO, files)
    command = [str(Path(sys.executable).parent / "hf"), "models", "info", REPO, "--revision", "main", "--expand", "sha"]
    shown = subprocess.run(command, env=hub.environment(tmp_path), check=True, capture_output=True, text=True, timeout=60)
    assert commit in shown.stdout


# ---- what a user reads ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [{}, {"HF_TOKEN": TOKEN}], ids=["stranger", "without the licence"])
def test_gated(hub, files, tmp_path, token):
    commit = hub.add(REPO, files, access="gated")
    text = message(fetched(hub, tmp_path, REPO, commit, **token), 3)
    assert text.startswith(f"{REPO} is gated: accept its licence on https://huggingface.co/{REPO}")
    assert "hf auth login" in text and "HF_TOKEN" in text
    assert {known for _, _, known in hub.asked} == {bool(token)}  # else the token could not show up in the text


def test_private(hub, files, tmp_path):
    commit = hub.add(REPO, files, access="private")
    assert "no such repository, or it is private" in message(fetched(hub, tmp_path, REPO, commit), 2)
    assert folder_of(fetched(hub, tmp_path, REPO, commit, HF_TOKEN=TOKEN)).name == commit


def test_a_refused_token(hub, files, tmp_path):
    commit = hub.add(REPO, files)
    text = message(fetched(hub, tmp_path, REPO, commit, HF_TOKEN="hf_OutOfDate"), 3)
    assert text == f"{REPO}: the hub refuses the token (status 401): `hf auth login` again, or mend HF_TOKEN"


@pytest.mark.parametrize("token", [{}, {"HF_TOKEN": TOKEN}], ids=["stranger", "known"])
def test_no_such_repository(hub, tmp_path, token):
    text = message(fetched(hub, tmp_path, "lab/tiny-gema", "0" * 40, **token), 2)
    assert text.startswith("lab/tiny-gema: the hub has no such repository") and "check the spelling" in text


@pytest.mark.parametrize("revision", ["0" * 40, "v2"])
def test_no_such_revision(hub, files, tmp_path, revision):
    hub.add(REPO, files)
    text = message(fetched(hub, tmp_path, REPO, revision), 2)
    assert text == f"{REPO} has no revision {revision!r}: https://huggingface.co/{REPO}/commits/main lists them"


def test_not_the_name_of_a_repository(hub, tmp_path):
    assert "write it as organisation/name" in message(fetched(hub, tmp_path, "a/b/c"), 2)
    assert hub.asked == []


def test_no_network(tmp_path):
    with serve() as hub:
        pass
    text = message(fetched(hub, tmp_path, REPO), 3)  # a commit would be tried six times, for 23 seconds
    assert f"{REPO} is not in the cache {tmp_path}/hub" in text and "Connection refused" in text
    assert f"`hf download {REPO} --exclude '*/*'`" in text and "{kind: path, path: FOLDER}" in text
    assert hub.url not in text


def test_offline(hub, files, tmp_path):
    commit = hub.add(REPO, files)
    text = message(fetched(hub, tmp_path, REPO, commit, HF_HUB_OFFLINE="1"), 3)
    assert "HF_HUB_OFFLINE is set" in text and f"`hf download {REPO} --revision {commit} --exclude '*/*'`" in text
    assert hub.asked == []


def test_half_a_model_in_the_cache_is_not_taken_for_one(hub, files, tmp_path):
    commit = hub.add(REPO, files)
    folder_of(fetched(hub, tmp_path, REPO, commit, TOKENIZER_FILES))
    assert "or not all of it" in message(fetched(hub, tmp_path, REPO, commit, HF_HUB_OFFLINE="1"), 3)


def test_a_broken_hub(hub, files, tmp_path):
    hub.add(REPO, files, access="broken")
    assert "the hub answers with status 503. Try again later" in message(fetched(hub, tmp_path, REPO), 3)


def test_a_full_disk(hub, files, tmp_path):
    """A limit on the size of files stands for the end of the disk: the same error of a write, with another number."""
    commit = hub.add(REPO, files)
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\n" + PROGRAM
    arguments = [sys.executable, "-c", limited, json.dumps([REPO, commit, MODEL_FILES])]
    done = subprocess.run(arguments, env=hub.environment(tmp_path), capture_output=True, text=True, timeout=60)
    text = message(done, 3)
    assert text == f"{REPO} cannot be written to {tmp_path}/hub: File too large; make room there, or set HF_HOME to another disk"


@pytest.mark.parametrize("kind", [OSError, RuntimeError])
def test_addresses_and_tokens_in_the_text_of_an_error_are_left_out(kind):
    """Signed addresses and a mirror's password; hf_xet, which fetches large files, raises RuntimeError with such texts."""
    error = kind("broke off at https://me:password@mirror.org/blob?signature=abc with hf_abc123, os error 28\nmore")
    problem = explained(error, Wanted(REPO, None, False, None, "start from a folder"))
    assert f"cannot be fetched: {kind.__name__}: broke off at … with …, os error 28. Try again later" in str(problem)
    assert problem.exit_code == 3


# ---- names ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("google/gemma-3-1b-it", True),
        ("Qwen/Qwen2.5-0.5B", True),
        ("gpt2", False),
        ("./outputs/final", False),
        ("outputs/final/", False),
        ("/models/gemma", False),
        ("../models", False),
        ("a/b/c", False),
        ("here/model", False),  # a folder, see the test
        ("", False),
    ],
)
def test_is_hub_id(text, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here/model").mkdir(parents=True)
    assert is_hub_id(text) is expected
