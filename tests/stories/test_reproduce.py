"""A run made again from its record: after the project moved on, from MLflow alone, and where it comes out another."""

import hashlib
import json
import shutil
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest
from story_project import CHAT, Project, metrics_of

from tunix_lab.lab.record.fingerprints import read_fingerprints
from tunix_lab.lab.record.journal import run_status

pytestmark = pytest.mark.slow

SPEC = f"""
name: small
model: {{family: gemma3, size: nano, init: {{kind: random}}}}
tokenizer: {{path: data/tokenizer}}
algorithm: {{kind: sft}}
data: {CHAT}
optimizer: {{learning_rate: 1.0e-3}}
training: {{max_steps: 3, batch_size: 8, eval_every: 4, eval_batch_size: 16}}
checkpoint: {{every: 4}}
tracking: {{experiment: stories}}
"""
SAMPLES = 'samples: {every: 10, count: 2, max_new_tokens: 4, scorer: "scorer:shortness"}\n'
SCORER = "def shortness(prompts, completions, **columns):\n    return [1 / (1 + len(text)) for text in completions]\n"


def git(home: Path, *arguments: str) -> str:
    names = ("-c", "user.name=Mia", "-c", "user.email=mia@example.org")
    return subprocess.run(["git", "-C", str(home), *names, *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory, data, cache) -> tuple[Project, Path]:
    """A project under git and a run of a dirty tree in it: an edited spec, a scorer that git does not know. Then it moved on."""
    project = Project(tmp_path_factory.mktemp("reproduce") / "project", cache)
    project.home.mkdir()
    shutil.copytree(data, project.home / "data")
    spec = project.home / "experiments/small.yaml"
    spec.parent.mkdir()
    spec.write_text(SPEC)
    git(project.home.parent, "init", "-q", str(project.home))
    git(project.home, "add", "experiments")
    git(project.home, "commit", "-q", "-m", "a spec")
    spec.write_text(SPEC.replace("max_steps: 3", "max_steps: 10") + SAMPLES)
    (project.home / "scorer.py").write_text(SCORER)
    project.cli("run", str(spec), "--set", "seed=5")
    [run] = project.runs()

    git(project.home, "checkout", "--", ".")
    spec.write_text("name: something else\n")
    git(project.home, "commit", "-q", "-a", "-m", "moved on")
    (project.home / "scorer.py").unlink()
    return project, run


def tags_in_mlflow(project: Project) -> dict[str, dict[str, str]]:
    """Tags by our run id."""
    with sqlite3.connect(project.home / "mlflow.db") as database:
        rows = database.execute("select run_uuid, key, value from tags").fetchall()
    runs = {uuid: value for uuid, key, value in rows if key == "lab.run_id"}
    return {run: {key: value for uuid, key, value in rows if uuid == mlflow_id} for mlflow_id, run in runs.items()}


def wait_for_step(project: Project, process: subprocess.Popen, workspace: Path, step: int) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        if any(steps and max(steps) >= step for steps in map(read_fingerprints, (workspace / "tree/runs").glob("*"))):
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached\n{process.communicate(timeout=10)}")


def test_bit_for_bit_although_the_project_moved_on(made: tuple[Project, Path]) -> None:
    """The first attempt is stopped by SIGTERM, the second goes on from there; the project itself is not touched."""
    project, run = made
    workspace = project.cache / "reproduce" / run.name
    process = project.start("reproduce", run.name)
    wait_for_step(project, process, workspace, 2)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, out + err
    assert project.runs() == [run] and workspace.is_dir()

    said = project.cli("reproduce", run.name[-4:])
    assert "going on with an interrupted attempt" in said and "resuming after step" in said
    assert "reproduced bit for bit: 10 updates" in said
    _, new = project.runs()
    assert run_status(new).status == "finished" and run_status(new).attempt == 2
    assert (new / "final/model.safetensors").read_bytes() == (run / "final/model.safetensors").read_bytes()
    assert metrics_of(new) == metrics_of(run) and any(name == "eval/shortness" for _, name in metrics_of(new))
    assert read_fingerprints(new) == read_fingerprints(run)
    record = json.loads((new / "reproduction.json").read_text())
    assert record["grade"] == "bit for bit" and record["divergence"] is None and record["environment"] == []
    manifest = json.loads((new / "manifest.json").read_text())
    assert manifest["kind"] == "reproduce" and manifest["reproduces"] == run.name
    tags = tags_in_mlflow(project)
    assert tags[new.name]["lab.reproduces"] == run.name and tags[new.name]["lab.kind"] == "reproduce"
    assert tags[run.name]["lab.reproduced_by"] == new.name
    assert tags[run.name]["lab.reproduction"].startswith("reproduced bit for bit")
    assert not workspace.exists() and len(git(project.home, "worktree", "list").splitlines()) == 1
    assert (project.home / "experiments/small.yaml").read_text() == "name: something else\n"
    assert git(project.home, "status", "--porcelain", "--", "experiments") == ""


def test_a_run_that_is_only_in_mlflow(made: tuple[Project, Path]) -> None:
    project, run = made
    shutil.move(run, project.home / "away")
    try:
        said = project.cli("reproduce", run.name, "--check", "--strict")
        assert "its patch + its untracked files" in said and "everything that the run needs is here" in said
        assert "no run 'small-nowhere' here, and none" in project.cli("reproduce", "small-nowhere", "--check", exit_code=2)
    finally:
        shutil.move(project.home / "away", run)


def test_edited_data_is_refused_by_name(made: tuple[Project, Path]) -> None:
    project, run = made
    file = project.home / "data/arithmetic/sft/train.jsonl"
    before = file.read_bytes()
    runs = project.runs()
    file.write_bytes(before.replace(b"7", b"8", 1))
    try:
        said = project.cli("reproduce", run.name, exit_code=5)
    finally:
        file.write_bytes(before)
    assert "data train data/arithmetic/sft/train.jsonl is another now" in said and "Traceback" not in said
    assert project.runs() == runs


def test_a_record_that_is_not_what_ran_diverges(made: tuple[Project, Path]) -> None:
    """Its spec has another seed than the run had, and its manifest vouches for it: only training shows it."""
    project, run = made
    false = project.home / "runs/small-20200101-000000-beef"
    shutil.copytree(run, false)
    resolved = false / "resolved.yaml"
    resolved.write_text(resolved.read_text().replace("seed: 5", "seed: 6"))
    said = project.cli("reproduce", false.name, exit_code=5)
    assert "resolved.yaml is not the file that its manifest names" in said
    manifest = json.loads((false / "manifest.json").read_text())
    manifest["files"]["resolved.yaml"] = hashlib.sha256(resolved.read_bytes()).hexdigest()
    (false / "manifest.json").write_text(json.dumps(manifest))

    said = project.cli("reproduce", false.name, exit_code=5, TUNIX_LAB_SYNC="off")
    assert "diverged at step 1 in data order" in said and "tunix-lab diff" in said and "Traceback" not in said
    new = project.runs()[-1]
    record = json.loads((new / "reproduction.json").read_text())
    assert record["grade"] == "diverged" and record["divergence"]["step"] == 1
    assert "updates: diverge at step 1: data order" in project.cli("diff", false.name, new.name)
