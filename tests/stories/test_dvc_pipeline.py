"""The DVC pipeline of a fresh clone: everything once, nothing twice, only what a change affects, and shared through a remote."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from story_project import REPOSITORY, Project

pytestmark = pytest.mark.slow

# Enough stages to see how they hang together; the other experiments only add more of the same kind.
TRAINING = ("pretrain_gemma", "sft_gemma", "lora_gemma", "dpo_gemma")


def _shell(project: Project, *command: str) -> str:
    binaries = str(Path(sys.executable).parent)
    environment = project.environment(PATH=f"{binaries}:/usr/bin:/bin", TUNIX_LAB_SYNC="off")
    del environment["TUNIX_LAB_HOME"]  # found by looking for the clone's own folder
    done = subprocess.run(command, cwd=project.home, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _edit(path: Path, **values: object) -> None:
    """Sets dotted fields of a YAML file, its comments kept."""
    yaml = YAML()
    document = yaml.load(path)
    for dotted, value in values.items():
        *parents, last = dotted.split("__")
        node = document
        for name in parents:
            node = node[name]
        node[last] = value
    yaml.dump(document, path)


def _keep_stages(path: Path) -> None:
    """Takes the stages of other experiments, their evaluations and plots out of dvc.yaml."""
    yaml = YAML()
    document = yaml.load(path)
    pages = {page.stem for page in (path.parent / "experiments").glob("*.yaml")}
    left_out = pages - set(TRAINING)
    stages = document["stages"]
    for name in left_out:
        del stages[name]
    stages["evaluate"]["foreach"] = [name for name in stages["evaluate"]["foreach"] if name in TRAINING]
    for name in left_out & stages["evaluate_preference"]["foreach"].keys():
        del stages["evaluate_preference"]["foreach"][name]
    for plot in document["plots"]:
        for lines in plot.values():
            lines["y"] = {file: column for file, column in lines["y"].items() if file.split("/")[1] in TRAINING}
    yaml.dump(document, path)


@pytest.fixture
def clone(tmp_path: Path, cache: Path) -> Project:
    """The tracked files of this repository under git elsewhere, with fewer rows and steps."""
    home = tmp_path / "clone"
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    for name in files.stdout.splitlines():
        if name.startswith(("experiments/", ".dvc", "dvc.yaml", "params.yaml", ".gitignore")):
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).write_bytes((REPOSITORY / name).read_bytes())
    _keep_stages(home / "dvc.yaml")
    _edit(home / "params.yaml", data__train=160, data__validation=32, data__test=32)
    for name in TRAINING:
        _edit(home / f"experiments/{name}.yaml", training__max_steps=12, training__batch_size=8, training__eval_every=6)
        _edit(home / f"experiments/{name}.yaml", optimizer__schedule__warmup_steps=2)
    project = Project(home, cache)
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.invalid")
    _shell(project, "git", "init", "-q")
    _shell(project, "git", "add", "-A")
    _shell(project, "git", *identity, "commit", "-qm", "clone")
    return project


def _behind(branches: list[dict]) -> list[dict]:
    return [branch for top in branches for branch in (top, *_behind(top.get("branches", [])))]


def _lineage(clone: Project) -> None:
    """From DVC's own files and real runs: pretrain → sft → dpo → evaluation, both ways."""
    runs = {name: json.loads((clone.home / f"outputs/{name}/run.json").read_text()) for name in TRAINING}
    lock = YAML(typ="safe").load(clone.home / "dvc.lock")["stages"]
    finals = {name: next(out["md5"] for out in lock[name]["outs"] if out["path"].endswith("/final")) for name in TRAINING}
    assert {name: record["dvc_digest"] for name, record in runs.items()} == finals  # what a run says of its model, DVC says too

    answer = json.loads(clone.cli("lineage", "outputs/dpo_gemma/final/model.safetensors", "--json"))
    made = {branch["path"]: branch for branch in _behind(answer["made_from"])}
    assert made["outputs/dpo_gemma/final"]["role"] == "part"  # by content: DVC's cache has the listing
    for name in ("pretrain_gemma", "sft_gemma", "dpo_gemma"):
        assert (
            made[runs[name]["run_id"]]["node"]["stage"] == name
            and made[f"outputs/{name}/final"]["node"]["digest"] == finals[name]
        )
    assert made["data/arithmetic/preference/train.jsonl"]["role"] == "train"
    assert made["data/arithmetic"]["role"] == "part" and {"data", "tokenizer"} <= made.keys()
    assert runs["lora_gemma"]["run_id"] not in made

    answer = json.loads(clone.cli("lineage", "data/arithmetic/pretrain/train.jsonl", "--json"))
    used = {branch["path"]: branch for branch in _behind(answer["used_by"])}
    assert {record["run_id"] for record in runs.values()} <= used.keys()
    evaluations = {branch["node"].get("stage") for branch in used.values() if branch["node"].get("run_kind") == "evaluate"}
    wanted = {"evaluate@pretrain_gemma", "evaluate@sft_gemma", "evaluate@lora_gemma", "evaluate_preference@dpo_gemma"}
    assert evaluations == wanted
    assert "outputs/evaluate/dpo_gemma.json" in used

    # The runs by hand are there too: the data was used by all of them.
    answer = json.loads(clone.cli("lineage", "data/arithmetic/preference/train.jsonl", "--json"))
    users = {branch["path"] for branch in answer["used_by"] if branch["role"].startswith("train")}
    assert users == {path.name for path in clone.runs() if path.name.startswith("dpo_gemma")} and len(users) == 2
    weights = clone.home / "outputs/lora_gemma/final/config.json"
    before = weights.read_bytes()
    weights.chmod(0o644)
    weights.write_bytes(before + b" ")
    assert "is not what the records say" in clone.cli("lineage", str(weights), exit_code=5)
    weights.write_bytes(before)


def test_pipeline(clone: Project, tmp_path: Path) -> None:
    # An experiment by hand first: what it starts from is made through the pipeline.
    said = clone.cli("run", "experiments/dpo_gemma.yaml", TUNIX_LAB_SYNC="off")
    assert "plan: dvc repro sft_gemma (data → tokenizer → pretrain_gemma → sft_gemma), then dpo_gemma" in said
    assert (clone.home / "outputs/sft_gemma/final/model.safetensors").is_file()
    assert not (clone.home / "outputs/dpo_gemma").exists()  # a run by hand leaves the pipeline's outputs alone

    _shell(clone, "dvc", "repro")
    assert "up to date" in _shell(clone, "dvc", "repro")
    metrics = json.loads(_shell(clone, "dvc", "metrics", "show", "--json"))[""]["data"]
    for name in TRAINING:
        assert 0 <= metrics[f"outputs/evaluate/{name}.json"]["data"]["exact_match"] <= 1
        record = json.loads((clone.home / f"outputs/{name}/run.json").read_text())
        assert (clone.home / "runs" / record["run_id"] / "manifest.json").is_file()
    manifest = json.loads((clone.home / "runs" / record["run_id"] / "manifest.json").read_text())
    upstream = json.loads((clone.home / "outputs/sft_gemma/run.json").read_text())
    assert manifest["parent_run_id"] == upstream["run_id"] and manifest["tags"]["dvc.stage"] == "dpo_gemma"
    lock = YAML(typ="safe").load(clone.home / "dvc.lock")["stages"]["dpo_gemma"]
    hashes = {entry["path"]: entry["md5"] for entry in lock["deps"]}
    assert manifest["tags"]["dvc.base"] == hashes["outputs/sft_gemma/final"]  # the digest that DVC itself shows
    assert "loss" in _shell(clone, "dvc", "plots", "show", "--json")
    _lineage(clone)

    _edit(clone.home / "experiments/dpo_gemma.yaml", algorithm__beta=0.5)
    changed = json.loads(_shell(clone, "dvc", "params", "diff", "--json"))
    assert changed["experiments/dpo_gemma.yaml"]["algorithm.beta"]["new"] == 0.5
    ran = _shell(clone, "dvc", "repro")
    running = [line.split("'")[1] for line in ran.splitlines() if line.startswith("Running stage")]
    assert running == ["dpo_gemma", "evaluate_preference@dpo_gemma"]

    remote, elsewhere = tmp_path / "remote", tmp_path / "elsewhere"
    _shell(clone, "dvc", "remote", "add", "--default", "team", str(remote))
    _shell(clone, "dvc", "push")
    _shell(clone, "git", "add", "-A")
    _shell(clone, "git", "-c", "user.name=t", "-c", "user.email=t@example.invalid", "commit", "-qm", "results")
    _shell(clone, "git", "clone", "-q", str(clone.home), str(elsewhere))
    _shell(Project(elsewhere, clone.cache), "dvc", "pull")
    weights = "outputs/dpo_gemma/final/model.safetensors"
    assert (elsewhere / weights).read_bytes() == (clone.home / weights).read_bytes()
