"""Making a run again without training one: the grade, the worktree and its refusals, the inputs by hash, the differences."""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hand_made import manifest
from test_manifest import NOTHING, commit, git, repository
from typer.testing import CliRunner

from tunix_lab.cli.main import app
from tunix_lab.errors import EnvironmentProblem, Mismatch, TrainingFailed, UserError
from tunix_lab.lab.divergence import Divergence, Gap, MetricGap
from tunix_lab.lab.record import untracked
from tunix_lab.lab.record.environment import environment
from tunix_lab.lab.record.git_state import git_state
from tunix_lab.lab.record.journal import Journal
from tunix_lab.lab.record.manifest import write_manifest
from tunix_lab.lab.reproduce.fetch_inputs import changed_inputs, fetch_inputs
from tunix_lab.lab.reproduce.recorded import Recorded, open_record
from tunix_lab.lab.reproduce.reproduce import Options, _alone, reproduce, surroundings
from tunix_lab.lab.reproduce.reproduction import graded
from tunix_lab.lab.reproduce.training import child_environment, package_of
from tunix_lab.lab.reproduce.worktree import Worktree, make_worktree, remove_worktree
from tunix_lab.lab.run_diff import RunDiff
from tunix_lab.lab.versioning import dvc_digest

__all__ = ["repository"]  # a fixture

SAME = RunDiff("old", "new", [], [], [], ([], []), [], ((1, 4), (1, 4)), None, [], 8, (0, 0), ("d", "d"))
GAP = Gap(1.0, 1.0001)
PARTED = Divergence(3, "update", "the same gradient", ("layers.2", "layers.3"), GAP, GAP, 4, GAP, GAP, 2, False)


def changed(**changes) -> RunDiff:
    return dataclasses.replace(SAME, **changes)


# ---- the grade -----------------------------------------------------------------------------------------------------------


def test_bit_for_bit():
    done = graded(SAME, 0.0, [])
    assert (done.grade, done.verdict) == (
        "bit for bit",
        "reproduced bit for bit: 4 updates, 8 metric values, the final parameters",
    )
    unfinished = graded(changed(params=(None, "d"), updates=((1, 2), (1, 4))), 0.0, [])
    assert (
        unfinished.verdict == "reproduced bit for bit: 2 updates, 8 metric values, no final parameters, since the run left none"
    )


def test_within_tolerance_says_the_largest_difference():
    gaps = [
        MetricGap(1, "train/loss", Gap(1.0, 1.0002)),
        MetricGap(4, "eval/loss", Gap(2.0, 2.001)),
        MetricGap(4, "train/x", GAP),
    ]
    diff = changed(metrics=gaps, divergence=PARTED, params=("d", "e"))
    done = graded(diff, 1e-3, [])
    assert done.succeeded and done.largest is gaps[1]
    assert done.verdict == "reproduced within tolerance: the largest relative difference is 0.0005, of eval/loss at step 4"
    assert not graded(diff, 4e-4, []).succeeded
    only_params = graded(changed(params=("d", "e")), 1e-3, [])
    assert only_params.verdict == "reproduced within tolerance: every metric is the same, the parameters are not"


def test_diverged_says_where():
    gaps = [MetricGap(3, "train/loss", Gap(1.0, float("nan")))]
    done = graded(changed(metrics=gaps, divergence=PARTED), 1e-3, [])
    assert done.verdict == "diverged at step 3 in update, layers.2, layers.3: the same gradient"
    assert done.as_data()["largest"] == {"step": 3, "name": "train/loss", "a": 1.0, "b": "nan", "relative": "inf"}
    json.dumps(done.as_data(), allow_nan=False)
    assert graded(changed(metrics=gaps), 1e-3, []).verdict == "diverged at step 3 in train/loss: 1 became nan"


def test_nothing_to_compare_is_no_success():
    assert not graded(changed(compared=0, updates=(None, None), params=(None, "d")), 1e-3, []).succeeded


def test_what_is_missing_from_the_new_run_is_no_success():
    shorter = graded(changed(updates=((1, 4), (1, 3))), 1e-3, [])
    assert shorter.verdict == "diverged: the new run has 3 of 4 updates"
    less = graded(changed(only=(2, 0)), 1e-3, [])
    assert less.verdict == "diverged: 2 metric values of the run are missing from the new one"
    assert graded(changed(only=(0, 2)), 1e-3, []).grade == "bit for bit"  # the old run was stopped, the new one went on


# ---- the record ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def recorded(repository, tmp_path) -> Recorded:
    """A run of a dirty tree: a changed file and an untracked one."""
    (repository / "package/code.py").write_text("x = 2\n")
    (repository / "scorer.py").write_text("y = 1\n")
    return record(repository, "dirty-1")


def record(project: Path, run_id: str, **changes) -> Recorded:
    run_dir = project / "runs" / run_id
    whole = (
        manifest(run_id, input_files=[], chat_template=None, hardware={"device_count": 1}, lock_files={})
        | environment()
        | changes
    )
    write_manifest(run_dir, whole, "name: x\n", "name: x\n", git_state(project, NOTHING), NOTHING)
    return Recorded(run_dir, json.loads((run_dir / "manifest.json").read_text()))


def opened(project: Path, text: str) -> Recorded:
    return open_record(project, text, f"sqlite:///{project}/none.db", project / "downloads")


def test_a_whole_record_opens(recorded, repository):
    found = opened(repository, "dirty")
    assert found == recorded and found.patch.startswith(b"diff --git") and found.bundle is not None
    assert not (repository / "none.db").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"redacted": ["dirty.patch"]}, "secrets were taken out of dirty.patch"),
        ({"git": {"commit": None}}, "not under git"),
        ({"input_files": None}, "kept too little"),
        ({"input_files": None, "kind": "evaluate"}, "it is an evaluation"),
    ],
)
def test_a_record_that_cannot_lead_back_is_refused(recorded, repository, changes, reason):
    whole = {name: value for name, value in (recorded.manifest | changes).items() if value is not None}
    (recorded.folder / "manifest.json").write_text(json.dumps(whole))
    with pytest.raises(UserError, match=reason):
        opened(repository, "dirty-1")


def test_a_changed_record_is_refused(recorded, repository):
    (recorded.folder / "dirty.patch").write_text("")
    with pytest.raises(Mismatch, match=r"dirty.patch is not the file that its manifest names"):
        opened(repository, "dirty-1")
    (recorded.folder / "dirty.patch").unlink()
    with pytest.raises(Mismatch, match=r"dirty.patch is missing"):
        opened(repository, "dirty-1")


def test_an_unknown_run_is_told(recorded, repository):
    with pytest.raises(UserError, match="no run 'nowhere' here, and none with this id in sqlite"):
        opened(repository, "nowhere")
    with pytest.raises(UserError, match="no run '../dirty-1'"):
        opened(repository, "../dirty-1")


# ---- the worktree --------------------------------------------------------------------------------------------------------


def test_the_tree_is_that_of_the_run(recorded, repository, tmp_path):
    git(repository, "checkout", "--", ".")
    (repository / "scorer.py").unlink()
    (repository / "later.py").write_text("")
    commit(repository)
    hook = repository / ".git/hooks/post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\ntouch hooked\n")
    hook.chmod(0o755)
    tree = make_worktree(recorded, repository, tmp_path / "tree")
    assert (tree.home / "package/code.py").read_text() == "x = 2\n" and (tree.home / "scorer.py").read_text() == "y = 1\n"
    assert not (tree.home / "later.py").exists() and not (tree.home / "hooked").exists() and tree.notes == []
    assert make_worktree(recorded, repository, tmp_path / "tree") == tree  # once more in the same place
    remove_worktree(repository, tmp_path / "tree")
    listed = subprocess.run(["git", "-C", str(repository), "worktree", "list"], capture_output=True, text=True, check=True)
    assert not (tmp_path / "tree").exists() and len(listed.stdout.splitlines()) == 1


def test_a_patch_that_gives_another_tree_is_found(recorded, repository, tmp_path):
    path = recorded.folder / "dirty.patch"
    path.write_bytes(path.read_bytes().replace(b"+x = 2", b"+x = 3"))  # git takes it, but not its index line
    with pytest.raises(Mismatch, match="does not give the recorded tree"):
        make_worktree(recorded, repository, tmp_path / "tree")
    path.write_bytes(path.read_bytes().replace(b"-x = 1", b"-x = 9"))
    with pytest.raises(UserError, match="git apply"):
        make_worktree(recorded, repository, tmp_path / "tree")


def test_a_bundle_with_another_file_is_found(recorded, repository, tmp_path):
    recorded.git["untracked"][0]["sha256"] = "0" * 64
    with pytest.raises(Mismatch, match=r"scorer.py of its bundle"):
        make_worktree(recorded, repository, tmp_path / "tree")
    recorded.git["untracked"][0] |= {"path": "../outside.py"}
    with pytest.raises(Mismatch, match="leads out of the project"):
        make_worktree(recorded, repository, tmp_path / "tree")


def test_large_untracked_files_come_from_the_project_or_are_noted(repository, tmp_path, monkeypatch):
    monkeypatch.setattr(untracked, "MAX_FILE", 4)
    (repository / "large.txt").write_text("too large")
    (repository / ".env").write_text("A=1")
    run = record(repository, "large-1")
    assert make_worktree(run, repository, tmp_path / "tree").notes == [".env was left out of the record: a file for secrets"]
    assert (tmp_path / "tree/large.txt").read_text() == "too large"
    (repository / "large.txt").write_text("another!!")
    notes = make_worktree(run, repository, tmp_path / "tree").notes
    assert "large.txt (9 bytes, untracked) was too large for the record and is not to be had" in notes


def test_a_commit_that_is_elsewhere_is_fetched_or_told(recorded, repository, tmp_path):
    clone, empty = tmp_path / "clone", tmp_path / "empty"
    git(tmp_path, "init", "-q", str(clone))
    with pytest.raises(UserError, match=r"is not in .*clone \(recorded remote: none\): fetch the branch"):
        make_worktree(recorded, clone, tmp_path / "tree")
    git(clone, "remote", "add", "origin", str(repository))
    assert (make_worktree(recorded, clone, tmp_path / "tree").home / "scorer.py").is_file()
    empty.mkdir()
    with pytest.raises(UserError, match="no git repository"):
        make_worktree(recorded, empty, tmp_path / "tree")


# ---- what has been trained ---------------------------------------------------------------------------------------------------

CHILD = """
import os, pathlib, shutil
home = pathlib.Path(os.environ["TUNIX_LAB_HOME"])
with open(os.environ["STORY"] + "/trained", "a") as file:
    file.write("x")
def main():
    if "LEAVES" in os.environ:
        shutil.copytree(os.environ["LEAVES"], home / "runs/new-1", dirs_exist_ok=True)
    raise SystemExit(int(os.environ["CODE"]))
"""


@pytest.fixture
def again(repository, tmp_path, monkeypatch):
    """Makes a run again with a stand-in for training that the project holds: it leaves a run directory, and an exit code."""
    (repository / "tunix_lab/cli").mkdir(parents=True)
    for name, content in {"__init__": "", "cli/__init__": "", "cli/main": CHILD}.items():
        (repository / f"tunix_lab/{name}.py").write_text(content)
    commit(repository)
    old = record(repository, "old-1").folder
    monkeypatch.setenv("STORY", str(tmp_path))
    say: list[str] = []

    def call(code: int = 0, *, left: str | None = "finished", **options) -> tuple:
        monkeypatch.setenv("CODE", str(code))
        if left is not None:
            new = record(repository, "new-1").folder
            train_a_little(new, left)
            shutil.rmtree(tmp_path / "left", ignore_errors=True)
            shutil.move(new, tmp_path / "left")
            monkeypatch.setenv("LEAVES", str(tmp_path / "left"))
        chosen = Options(replicate=False, **options)
        return reproduce(repository, "old-1", tracking_uri="", cache=tmp_path / "cache", options=chosen, say=say.append)

    train_a_little(old, "finished")
    call.say, call.workspace, call.project = say, tmp_path / "cache/reproduce/old-1", repository
    call.times = lambda: len((tmp_path / "trained").read_text())
    return call


def train_a_little(run_dir: Path, status: str) -> None:
    with Journal.open(run_dir) as journal:
        journal.metrics(1, {"train/loss": 2.0})
        journal.finish(status)


def test_what_was_trained_stays_until_it_is_in_the_project(again):
    (again.project / ".arriving-new-1").write_text("in the way, as a full disk is")
    with pytest.raises(EnvironmentProblem, match="runs/new-1: cannot be written"):
        again()
    assert (again.workspace / "tree/runs/new-1").is_dir() and "the same command goes on from there" in again.say[-1]
    (again.project / ".arriving-new-1").unlink()
    assert again().grade == "bit for bit"
    assert again.times() == 1 and "going on with an interrupted attempt (--fresh starts anew)" in again.say
    assert (again.project / "runs/new-1/reproduction.json").is_file() and not again.workspace.exists()


def test_a_run_that_went_on_with_other_code_is_told_before_it_is_made_again(again):
    for origin in ({"git.commit": "aaa"}, {"git.commit": "bbb"}):
        with Journal.open(again.project / "runs/old-1", origin) as journal:
            journal.finish("finished")
    told = "the original went on in attempt 3 with another git.commit: aaa → bbb; the record holds attempt 1"
    with pytest.raises(EnvironmentProblem, match="differences, and --strict allows none") as refused:
        again(strict=True, check=True)
    differs = [line for line in again.say if line.startswith("differs")]
    assert differs[-1] == f"differs  {told}" and f"old-1: {len(differs)} differences" in str(refused.value)
    result = again()
    assert result.grade == "bit for bit" and result.notes == [told] and f"differs  {told}" in again.say


def test_a_new_run_that_the_environment_ended_goes_on(again):
    with pytest.raises(EnvironmentProblem, match="ended with exit code 3"):
        again(3, left="failed")
    assert (again.workspace / "tree/runs/new-1").is_dir()
    assert again().grade == "bit for bit" and again.times() == 2 and not again.workspace.exists()


def test_an_attempt_that_has_trained_nothing_leaves_nothing(again):
    with pytest.raises(EnvironmentProblem, match="ended with exit code 2"):
        again(2, left=None)
    assert not again.workspace.exists()
    with pytest.raises(TrainingFailed, match="ended with exit code 4"):
        again(4, left=None)
    assert not again.workspace.exists()


def test_a_failed_training_is_graded_as_far_as_it_went(again):
    """So may be that of the old run: an update that gave no number is then made again."""
    result = again(4, left="failed")
    assert result.grade == "bit for bit" and "compared as far as it went" in result.notes[-1]
    assert (again.project / "runs/new-1").is_dir() and not again.workspace.exists()


@pytest.mark.parametrize("tolerance", ["inf", "nan", "-1"])
def test_the_tolerance_is_a_finite_number(tolerance):
    done = CliRunner().invoke(app, ["reproduce", "x", "--tolerance", tolerance])
    assert done.exit_code == 2 and ("is not a finite number" in done.output or "greater than or equal to 0" in done.output)
    with pytest.raises(UserError, match="--tolerance must be a finite number of at least 0"):
        Options(tolerance=float(tolerance))


# ---- the inputs ----------------------------------------------------------------------------------------------------------


def entry(path: str, digest: str | None, role: str = "data train") -> dict:
    return {"role": role, "name": path, "path": path, "digest": digest}


def test_inputs_come_from_the_project_if_they_are_the_same(tmp_path):
    project, home = tmp_path / "project", tmp_path / "home"
    (project / "data/tokenizer").mkdir(parents=True)
    home.mkdir()
    (project / "data/a.jsonl").write_text("a\n")
    (project / "data/tokenizer/x.json").write_text("{}")
    inputs = [entry("data/a.jsonl", dvc_digest(project / "data/a.jsonl"))]
    inputs += [entry("data/tokenizer", dvc_digest(project / "data/tokenizer"), "tokenizer"), {"path": None, "role": "base"}]
    assert fetch_inputs(inputs, project, home) == []
    assert (home / "data/a.jsonl").read_text() == "a\n" and (home / "data/tokenizer/x.json").is_file()
    (project / "data/a.jsonl").write_text("b\n")
    assert fetch_inputs(inputs, project, home) == []  # it is there already
    (home / "data/a.jsonl").write_text("c\n")  # git has another one at this commit
    [problem] = fetch_inputs(inputs, project, home)
    assert problem.startswith("data train data/a.jsonl is another now (") and inputs[0]["digest"] in problem
    (project / "data/a.jsonl").unlink()
    assert "data/a.jsonl is gone" in changed_inputs(inputs, project, home)[0]


def test_inputs_outside_the_project(tmp_path):
    project, home = tmp_path / "project", tmp_path / "home"
    project.mkdir(), home.mkdir()
    (tmp_path / "far.jsonl").write_text("a\n")
    digest = dvc_digest(tmp_path / "far.jsonl")
    assert fetch_inputs([entry(str(tmp_path / "far.jsonl"), digest)], project, home) == []
    assert "lies outside" in fetch_inputs([entry("../other.jsonl", digest)], project, home)[0]


@pytest.mark.slow
def test_inputs_come_from_dvc(repository, tmp_path):
    """From its cache after the file was edited, and after the cache is gone from a remote that the commit does not know."""

    def dvc(*arguments: str) -> None:
        quiet = os.environ | {"DVC_NO_ANALYTICS": "1"}
        subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=repository, env=quiet, check=True, capture_output=True)

    (repository / "data/set").mkdir(parents=True)
    (repository / "data/set/rows.jsonl").write_text("rows\n")
    (repository / "data/one.jsonl").write_text("one\n")
    dvc("init", "-q")
    dvc("add", "-q", "data/set", "data/one.jsonl")
    commit(repository)  # which knows no remote yet
    dvc("remote", "add", "-q", "--default", "later", str(tmp_path / "empty"))
    dvc("remote", "add", "-q", "--local", "mine", str(tmp_path / "mine"))
    dvc("push", "-q", "--remote", "mine")
    inputs = [
        entry("data/set", dvc_digest(repository / "data/set")),
        entry("data/one.jsonl", dvc_digest(repository / "data/one.jsonl")),
    ]
    run = record(repository, "dvc-1", input_files=inputs)
    for name in ("data/set/rows.jsonl", "data/one.jsonl"):
        (repository / name).unlink()
        (repository / name).write_text("edited\n")
    home = make_worktree(run, repository, tmp_path / "tree").home
    assert fetch_inputs(inputs, repository, home) == []
    assert (home / "data/set/rows.jsonl").read_text() == "rows\n" and (home / "data/one.jsonl").read_text() == "one\n"

    subprocess.run(["rm", "-rf", str(repository / ".dvc/cache/files")], check=True)
    home = make_worktree(run, repository, tmp_path / "tree").home
    assert fetch_inputs(inputs, repository, home) == []
    assert (home / "data/set/rows.jsonl").read_text() == "rows\n"


# ---- the surroundings ----------------------------------------------------------------------------------------------------


def test_differences_of_the_surroundings_are_named(recorded, monkeypatch, tmp_path):
    tree = Worktree(tmp_path, tmp_path, [])
    assert surroundings(recorded, tree, probe=False) == []
    lock = recorded.folder / "env.lock"
    lock.write_text(lock.read_text().replace("numpy==", "numpy==0."))
    recorded.manifest["cpu"] = {"model": "Other", "count": recorded.manifest["cpu"]["count"]}
    recorded.manifest["environment"] = {"XLA_FLAGS": "--then"}
    monkeypatch.setenv("XLA_FLAGS", "--now")  # the new run gets the recorded ones
    monkeypatch.setenv("JAX_ENABLE_X64", "1")
    assert {difference.name for difference in surroundings(recorded, tree, probe=False)} == {"version numpy", "cpu model"}
    given = child_environment(recorded, os.environ)
    assert given["XLA_FLAGS"] == "--then" and "JAX_ENABLE_X64" not in given


def test_the_package_of_the_worktree_is_the_one_that_runs(recorded, tmp_path):
    tree = Worktree(tmp_path, tmp_path / "projects/one", [])
    assert package_of(tree) is None
    (tmp_path / "tunix_lab").mkdir()
    (tmp_path / "tunix_lab/__init__.py").write_text("")
    assert package_of(tree) == tmp_path
    assert "package source" in {difference.name for difference in surroundings(recorded, tree, probe=False)}


def test_two_reproductions_of_a_run_do_not_meet(tmp_path):
    with _alone(tmp_path / "reproduce/x-1"):
        with (
            pytest.raises(EnvironmentProblem, match="x-1 is being made again by another process"),
            _alone(tmp_path / "reproduce/x-1"),
        ):
            pass
    with _alone(tmp_path / "reproduce/x-1"):
        pass


def test_hashes_of_the_record_are_those_of_its_files(recorded):
    for name, digest in recorded.manifest["files"].items():
        assert hashlib.sha256((recorded.folder / name).read_bytes()).hexdigest() == digest
