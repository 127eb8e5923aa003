"""The record of code and environment: a patch and a bundle that make the tree again, quickly, and no secret in them."""

import gzip
import hashlib
import io
import json
import os
import sqlite3
import subprocess
import tarfile
import time
from pathlib import Path

import pytest
from hand_made import manifest
from ruamel.yaml import YAML

from tunix_lab.lab.record import untracked
from tunix_lab.lab.record.environment import (
    command_line,
    cpu_model,
    env_lock,
    environment,
    installed,
    lock_file_digests,
    read_env_lock,
)
from tunix_lab.lab.record.git_state import GitState, git_state
from tunix_lab.lab.record.journal import Journal
from tunix_lab.lab.record.manifest import write_manifest
from tunix_lab.lab.record.redaction import REDACTED, Redactor
from tunix_lab.lab.record.untracked import bundle_untracked, unpack
from tunix_lab.spec.render import to_yaml

pytestmark = [pytest.mark.filterwarnings(f"ignore:::{package}") for package in ("mlflow", "alembic", "sqlalchemy")]

NOTHING = Redactor({})
LETTERS = "aB3dE5gH7jK9mN1pQ3sT5vX7zA2cF4hJ6lM8"


def git(folder: Path, *arguments: str) -> None:
    names = ("-c", "user.name=Mia", "-c", "user.email=mia@example.org")
    subprocess.run(["git", "-C", str(folder), *names, *arguments], check=True, capture_output=True)


def commit(folder: Path) -> None:
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "state")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    top = tmp_path / "repository"
    (top / "package").mkdir(parents=True)
    git(top.parent, "init", "-q", "-b", "trunk", str(top))
    (top / "package/code.py").write_text("x = 1\n")
    (top / "package/gone.py").write_text("y = 1\n")
    (top / "picture.bin").write_bytes(bytes(range(256)))
    (top / "crlf.txt").write_bytes(b"one\r\ntwo \r\nthree")
    (top / ".gitignore").write_text("ignored/\n")
    commit(top)
    return top


def test_no_git_is_an_empty_state(tmp_path):
    assert git_state(tmp_path, NOTHING) == GitState() and not GitState().dirty
    assert GitState().tags() == {"lab.git.dirty": "false"}


def test_a_machine_without_git_is_an_empty_state(repository, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(repository, NOTHING) == GitState()


def test_a_clean_tree(repository):
    git(repository, "remote", "add", "origin", "https://mia:secret-pass@example.org/a.git")
    state = git_state(repository, NOTHING)
    assert not state.dirty and state.patch == b"" and state.untracked == () and state.prefix == ""
    assert state.branch == "trunk" and len(state.commit) == 40 and state.remote == "https://example.org/a.git"
    assert state.tags()["mlflow.source.git.commit"] == state.commit


def test_what_runs_write_is_not_code(repository):
    for name in ("runs/r/manifest.json", "outputs/a/final/x", "checkpoints/1/x", "mlflow.db", "mlartifacts/0/x", "data/a.jsonl"):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text("x")
    assert not git_state(repository, NOTHING).dirty


def test_patch_and_bundle_make_the_tree_again(repository, tmp_path):
    (repository / "package/code.py").write_text("x = 2  # ünïcode")  # and no newline at its end
    (repository / "package/gone.py").unlink()
    (repository / "picture.bin").write_bytes(bytes(reversed(range(256))) * 3)
    (repository / "crlf.txt").write_bytes(b"one\r\n2 \t\r\nthree\n\xff\xfe latin")
    (repository / "staged.py").write_text("z = 1\n")
    git(repository, "add", "staged.py")
    (repository / "new folder").mkdir()
    (repository / "new folder/scörer.py").write_text("def score(): ...\n")
    (repository / "tool.sh").write_text("#!/bin/sh\n")
    (repository / "tool.sh").chmod(0o755)
    (repository / "link").symlink_to("package/code.py")
    git(repository, "config", "diff.noprefix", "true")
    git(repository, "config", "core.quotepath", "true")
    state = git_state(repository, NOTHING)
    found = bundle_untracked(state.top, state.untracked, NOTHING)
    assert [entry["path"] for entry in found.files] == ["link", "new folder/scörer.py", "tool.sh"]

    again = tmp_path / "again"
    git(repository, "worktree", "add", "--detach", str(again), state.commit)
    subprocess.run(["git", "apply", "--whitespace=nowarn", "-"], cwd=again, input=state.patch, check=True, capture_output=True)
    unpack(found.bundle, again)
    names = ("package/code.py", "picture.bin", "crlf.txt", "staged.py", "new folder/scörer.py", "tool.sh", "link")
    for name in names:
        assert (again / name).read_bytes() == (repository / name).read_bytes(), name
    assert not (again / "package/gone.py").exists()
    assert os.access(again / "tool.sh", os.X_OK) and not os.access(again / "staged.py", os.X_OK)
    assert (again / "link").is_symlink()


def test_a_project_in_a_folder_of_its_repository(repository):
    home = repository / "projects/one"
    (home / "runs").mkdir(parents=True)
    (home / "spec.yaml").write_text("a: 1\n")
    commit(repository)
    (repository / "package/code.py").write_text("x = 3\n")
    (repository / "beside.py").write_text("")
    (home / "runs/x").write_text("")
    state = git_state(home, NOTHING)
    assert state.prefix == "projects/one/" and state.top == repository
    assert b"package/code.py" in state.patch and state.untracked == ("beside.py",)


def test_the_bundle_is_deterministic_and_bounded(repository, monkeypatch):
    (repository / "b.txt").write_text("b")
    (repository / "a.txt").write_text("a")
    (repository / "large.bin").write_bytes(b"0" * (untracked.MAX_FILE + 1))
    (repository / "ignored").mkdir()
    (repository / "ignored/x").write_text("x")
    state = git_state(repository, NOTHING)
    first = bundle_untracked(state.top, state.untracked, NOTHING)
    os.utime(repository / "a.txt", (1, 1))
    assert bundle_untracked(state.top, reversed(state.untracked), NOTHING) == first
    with tarfile.open(fileobj=io.BytesIO(first.bundle)) as archive:
        assert archive.getnames() == ["a.txt", "b.txt"]
    large = next(entry for entry in first.files if entry["path"] == "large.bin")
    assert not large["bundled"] and large["sha256"] == hashlib.sha256(b"0" * (untracked.MAX_FILE + 1)).hexdigest()

    monkeypatch.setattr(untracked, "MAX_HASHED", 1000)
    monkeypatch.setattr(untracked, "MAX_BUNDLE", 1)
    monkeypatch.setattr(untracked, "MAX_LISTED", 3)
    (repository / "z.txt").write_text("z")
    found = bundle_untracked(repository, git_state(repository, NOTHING).untracked, NOTHING)
    assert [(entry["path"], entry["bundled"], entry["sha256"] is None) for entry in found.files] == [
        ("a.txt", True, False),
        ("b.txt", False, False),
        ("large.bin", False, True),
    ]
    assert found.more == 1


def test_what_is_no_file_of_the_project_is_left_out(repository, tmp_path):
    (tmp_path / "elsewhere").write_text("x")
    (repository / "out").symlink_to(tmp_path / "elsewhere")
    (repository / "up").symlink_to("../elsewhere")
    os.mkfifo(repository / "pipe")
    git(repository, "init", "-q", str(repository / "nested"))
    (repository / "nested/x").write_text("x")
    git(repository / "nested", "add", "x")
    git(repository / "nested", "commit", "-q", "-m", "x")
    paths = [*git_state(repository, NOTHING).untracked, "vanished"]
    found = bundle_untracked(repository, paths, NOTHING)
    reasons = dict(found.left_out)
    assert reasons["out"] == reasons["up"] == "a link that leads out of the project"
    assert reasons["nested/"] == "another git repository" and "vanished" in reasons
    assert found.files == [] and found.bundle is None


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped"])
def test_a_bundle_cannot_write_outside(tmp_path, name):
    stream = io.BytesIO()
    with gzip.GzipFile(fileobj=stream, mode="wb") as file, tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("fine"), io.BytesIO(b""))
        archive.addfile(tarfile.TarInfo(name), io.BytesIO(b""))
    (tmp_path / "inside").mkdir()
    try:
        unpack(stream.getvalue(), tmp_path / "inside")
    except tarfile.FilterError:
        pass
    outside = [path.name for path in tmp_path.iterdir() if path.name != "inside"]
    assert outside == [] and not Path("/tmp/escaped").exists()


SECRETS = {
    "named": "correct-horse-battery",
    "hub": "hf_" + LETTERS[:34],
    "github": "ghp_" + LETTERS,
    "openai": "sk-" + LETTERS,
    "amazon": "AKIA" + "IOSFODNN7EXAMPLE",
    "slack": "xoxb-" + "123456789012-" + LETTERS,
    "web": "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0In0." + LETTERS,
    "address": "pa55word-of-mia",
    "key": "MIIEow" + LETTERS * 2,
    "dotenv": "plain-value-of-a-key-file",
}
PRIVATE = f"-----BEGIN RSA PRIVATE KEY-----\n{SECRETS['key']}\n-----END RSA PRIVATE KEY-----\n"


@pytest.fixture
def leaking(repository, monkeypatch) -> Path:
    """A project whose owner left a secret in every place that a run records."""
    monkeypatch.setenv("MY_SERVICE_TOKEN", SECRETS["named"])
    monkeypatch.setenv("XLA_FLAGS", f"--xla_dump_to=https://mia:{SECRETS['address']}@host/")
    monkeypatch.setenv("JAX_STORE", f"gs://x?token={SECRETS['address']}")
    monkeypatch.setattr("sys.argv", ["/usr/bin/tunix-lab", "run", f"--set=tags.api_key={SECRETS['dotenv']}", SECRETS["hub"]])
    git(repository, "remote", "add", "origin", f"https://{SECRETS['github']}:{SECRETS['address']}@host/a.git")
    (repository / ".env").write_text("A=1\n")
    (repository / "weights.bin").write_bytes(b"\0" * 64)
    commit(repository)
    (repository / "package/code.py").write_text(f'TOKEN = "{SECRETS["hub"]}"\nOTHER = "{SECRETS["named"]}"\n{PRIVATE}')
    (repository / ".env").write_text(f"A={SECRETS['dotenv']}\n")
    (repository / "weights.bin").write_bytes(b"\0" * 64 + SECRETS["slack"].encode() + b"\0")
    (repository / "clean.py").write_text("x = 1\n")
    (repository / "leak.py").write_text(f'x = "{SECRETS["openai"]}"\n')
    (repository / "blob.dat").write_bytes(b"\0\xff" + SECRETS["amazon"].encode())
    (repository / ".env.local").write_text(f"B={SECRETS['dotenv']}\n")
    (repository / "id_rsa").write_text(PRIVATE)
    return repository


def record(home: Path, run_dir: Path) -> dict:
    """A run directory as a run writes it, with secrets in its spec, its tags and its error."""
    redactor, state = Redactor.of_process(), git_state(home)
    tags = {**state.tags(), "note": f"Bearer {SECRETS['web']}"}
    whole = manifest(run_dir.name, tags=tags, description=f"see https://u:{SECRETS['address']}@host") | environment()
    whole |= {"command": command_line(redactor), "params": {"x": SECRETS["hub"]}}
    spec = f"name: x\ntracking: {{tags: {{owner: {SECRETS['openai']}, other: '{SECRETS['named']}'}}}}\n"
    journal = Journal.open(run_dir)
    write_manifest(run_dir, whole, spec, spec, state)
    journal.metrics(1, {"train/loss": 1.0})
    journal.finish("failed", f"ConnectionError: https://u:{SECRETS['address']}@host refused {SECRETS['hub']}")
    journal.close()
    return json.loads((run_dir / "manifest.json").read_text())


def found_in(folder: Path) -> list[str]:
    """Which secrets lie in which file; archives are opened."""
    contents = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    contents |= {path: content + gzip.decompress(content) for path, content in contents.items() if path.name.endswith(".gz")}
    return [
        f"{path}: {name}" for path, content in contents.items() for name, value in SECRETS.items() if value.encode() in content
    ]


def test_no_secret_reaches_the_run_directory(leaking, tmp_path):
    run_dir = tmp_path / "runs/leaky-1"
    written = record(leaking, run_dir)
    assert found_in(run_dir) == []
    # what is not secret is all there, and the manifest says what is missing
    assert written["redacted"] == ["spec.yaml", "resolved.yaml", "dirty.patch"]
    reasons = {entry["path"]: entry["reason"] for entry in written["git"]["left_out"]}
    assert reasons == {
        ".env": "a file for secrets",
        "weights.bin": "a binary file that holds a secret",
        ".env.local": "a file for secrets",
        "id_rsa": "a file for secrets",
        "blob.dat": "holds a secret",
        "leak.py": "holds a secret",
    }
    assert [entry["path"] for entry in written["git"]["untracked"]] == ["clean.py"]
    assert f'TOKEN = "{REDACTED}"' in (run_dir / "dirty.patch").read_text()
    assert written["command"] == ["tunix-lab", "run", f"--set=tags.api_key={REDACTED}", REDACTED]
    assert written["git"]["remote"] == "https://host/a.git" and written["params"] == {"x": REDACTED}
    assert written["environment"]["XLA_FLAGS"] == f"--xla_dump_to=https://{REDACTED}@host/"
    for name, digest in written["files"].items():
        assert hashlib.sha256((run_dir / name).read_bytes()).hexdigest() == digest
    assert {"spec.yaml", "resolved.yaml", "env.lock", "dirty.patch", "untracked.tar.gz"} == set(written["files"])


def test_a_secret_is_taken_out_of_a_spec_however_it_is_written_there(repository, tmp_path, monkeypatch):
    secret, run_dir = "half-\"quoted\"\\and'slashed'", tmp_path / "runs/r"
    monkeypatch.setenv("MY_SERVICE_TOKEN", secret)
    monkeypatch.setattr("sys.argv", ["/usr/bin/tunix-lab", "run", f"--set=tracking.tags.a={json.dumps(secret)}"])
    tags = {"a": secret, "b": f"two\nlines {secret}", "api_token": "opaque-word", "clean": "kept"}
    resolved = to_yaml({"name": "x", "tracking": {"tags": tags}})
    single = secret.replace("'", "''")
    spec = f"name: x  # why\ntracking: {{tags: {{a: {json.dumps(secret)}, b: '{single}'}}}}\n"
    redactor = Redactor.of_process()
    whole = manifest("r", tags=tags) | {"command": command_line(redactor)}
    write_manifest(run_dir, whole, spec, resolved, git_state(repository), redactor)
    written = json.loads((run_dir / "manifest.json").read_text())
    assert written["redacted"] == ["spec.yaml", "resolved.yaml"]
    expected = {"a": REDACTED, "b": f"two\nlines {REDACTED}", "api_token": REDACTED, "clean": "kept"}
    assert written["tags"] == expected
    assert YAML(typ="safe").load(run_dir / "resolved.yaml")["tracking"]["tags"] == expected
    assert YAML(typ="safe").load(run_dir / "spec.yaml")["tracking"]["tags"] == {"a": REDACTED, "b": REDACTED}
    assert "# why" in (run_dir / "spec.yaml").read_text()
    for path in run_dir.glob("*"):
        assert "slashed" not in path.read_text() and "opaque-word" not in path.read_text(), path


def test_no_secret_reaches_mlflow(leaking, tmp_path, tracking_uri, store_file):
    from tunix_lab.lab.tracking.sync import push

    run_dir = tmp_path / "runs/leaky-1"
    record(leaking, run_dir)
    assert push(run_dir, tracking_uri).outcome == "complete"
    artifacts = tmp_path / "mlartifacts"
    names = {path.name for path in artifacts.rglob("*") if path.is_file()}
    assert {"manifest.json", "dirty.patch", "untracked.tar.gz", "env.lock", "resolved.yaml", "metrics.jsonl"} <= names
    assert found_in(artifacts) == []
    with sqlite3.connect(store_file) as database:
        dump = "\n".join(database.iterdump())
    assert [name for name, value in SECRETS.items() if value in dump] == [] and REDACTED in dump


def test_a_clean_record_has_no_reservations(repository, tmp_path):
    run_dir = tmp_path / "runs/r"
    write_manifest(run_dir, manifest("r"), "name: x\n", "name: x\nseed: 0\n", git_state(repository), NOTHING)
    written = json.loads((run_dir / "manifest.json").read_text())
    assert written["redacted"] == [] and written["git"]["left_out"] == [] and not written["git"]["dirty"]
    assert set(written["files"]) == {"spec.yaml", "resolved.yaml", "env.lock"}
    assert not (run_dir / "dirty.patch").exists() and not (run_dir / "untracked.tar.gz").exists()


def test_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_ENABLE_X64", "1")
    monkeypatch.setenv("XLA_FLAGS", "--a")
    monkeypatch.setenv("UNRELATED", "1")
    seen = environment()
    assert seen["environment"] == {"JAX_ENABLE_X64": "1", "XLA_FLAGS": "--a"}
    assert seen["versions"]["jax"] == installed()["jax"] and len(seen["package"]) == 64
    assert seen["cpu"]["count"] >= 1 and seen["cpu"]["model"] == cpu_model() != ""
    assert read_env_lock(env_lock()) == installed() and len(installed()) > 100
    assert "typing-extensions" in installed()  # the normalised name, as pip writes it
    (tmp_path / "uv.lock").write_text("x")
    assert lock_file_digests(tmp_path) == {"uv.lock": hashlib.sha256(b"x").hexdigest()}


def test_the_command_line(monkeypatch):
    monkeypatch.setattr("sys.argv", ["-c", "run", "a.yaml", "--out", "outputs/a"])
    assert command_line(NOTHING) == ["tunix-lab", "run", "a.yaml", "--out", "outputs/a"]


def test_looking_at_this_repository_is_quick():
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        state = git_state(Path(__file__).parents[2], NOTHING)
        seconds.append(time.perf_counter() - begin)
    assert state.commit and min(seconds) < 0.3
